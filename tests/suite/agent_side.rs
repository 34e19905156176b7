//! The agent's side of delivery, with a controller that the test plays: the real one stands still, and its key signs
//! what the test wants to be said.

use std::process::Command;

use sally_common::clock::now_ms;
use sally_common::id::Nonce;
use sally_common::secret;
use sally_common::wire::command::{Answer, Cancel, Dispatch, Lane, Probe, To};
use sally_common::wire::report::{
    AgentCondition, Ask, Heartbeat, News, Question, ResultMessage, State, StreamEnd,
};
use sally_common::wire::{self, Envelope, Kind, Refusal, VERSION};
use serde_json::Value;

use crate::forgery::{Draft, Forger, Stopped};
use crate::harness::{eventually, programs, run};

const LIVE: &str = "sally.live.local.local-1";
const STATE: &str = "sally.state.local.local-1";
const RESULT: &str = "sally.result.local.local-1";
const ASK: &str = "sally.ask.local.local-1";
const HEARTBEAT: &str = "sally.heartbeat.local.local-1";

/// A stage on which the test is the only controller that speaks.
struct Played {
    forger: Forger,
    /// A dispatch of the real controller, and the model of all others.
    model: Dispatch,
    _silent: Stopped,
}

impl Played {
    fn start() -> Played {
        let mut forger = Forger::start(1);
        let (_, model) = forger.genuine("first");
        // The result has its receipt: nothing is owed any more.
        forger.heartbeat(|_| true);
        eventually("the first result has its receipt", || {
            (local(&forger, &["status", "-o", "json"]).1["status"]["spool"]["results"] == 0).then_some(())
        });
        let silent = Stopped::new(forger.up.pid_of("serve").unwrap());
        forger.forget();
        Played { forger, model, _silent: silent }
    }

    fn say(&self, kind: Kind, body: Vec<u8>) {
        self.forger.send(LIVE, &Envelope::seal_bytes(kind, &self.forger.controller, body));
    }

    /// A dispatch of a new run with an effect, changed.
    fn dispatch(&self, mark: &str, change: impl FnOnce(&mut Dispatch)) -> Dispatch {
        let mut draft = Draft::new(&self.forger, &self.model, mark);
        draft.bind();
        change(&mut draft.dispatch);
        let dispatch = draft.dispatch.clone();
        self.forger.send(LIVE, &draft.seal());
        dispatch
    }

    fn news(&mut self, of: &Dispatch) -> News {
        self.forger.await_message(STATE, |m| {
            wire::read::<State>(&m.payload).ok().filter(|s| s.run == of.run).map(|s| s.news)
        })
    }

    fn result(&mut self, of: &Dispatch) -> ResultMessage {
        self.forger.await_message(RESULT, |m| {
            wire::read::<ResultMessage>(&m.payload).ok().filter(|r| r.run == of.run)
        })
    }

    fn ask(&mut self, good: impl Fn(&Ask) -> bool) -> Ask {
        self.forger.await_message(ASK, |m| wire::read::<Ask>(&m.payload).ok().filter(|ask| good(ask)))
    }

    fn answer(&self, ask: &Ask, change: impl FnOnce(&mut Answer)) {
        let to = To { incarnation: ask.from.incarnation, ..self.model.to.clone() };
        let mut answer = Answer {
            v: VERSION,
            to,
            nonce: ask.nonce,
            now_ms: now_ms(),
            welcome: true,
            message: None,
            waiting: 0,
            given: 0,
            renew: false,
        };
        change(&mut answer);
        self.say(Kind::Answer, wire::to_bytes(&answer));
    }

    fn started(&self, mark: &str) -> bool {
        self.forger.listener.marks().contains(&mark.to_owned())
    }

    #[track_caller]
    fn wait_for(&self, mark: &str) {
        eventually(&format!("the effect {mark}"), || self.started(mark).then_some(()));
    }

    /// Kills the agent's process; `up` starts another. A run goes before it: a receipt is on disk with the next mark,
    /// and a result whose receipt was lost is sent again.
    fn restart_agent(&mut self) {
        let last = self.dispatch("last", |d| d.lane = Lane::Direct);
        self.result(&last);
        let pid = self.forger.up.pid_of("local-1").unwrap();
        self.forger.forget();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

fn is_boot(ask: &Ask) -> bool {
    matches!(ask.question, Question::Work { boot: true, .. })
}

/// `sally-agent VERB` on the state of `local-1`. Its exit code, and what it printed if that is JSON.
fn local(forger: &Forger, args: &[&str]) -> (i32, Value) {
    let state = forger.up.dir().join("agents/local-1/state");
    let said = run(Command::new(programs().join("sally-agent")).args(args).arg("--state-dir").arg(state));
    (said.code, serde_json::from_slice(&said.stdout).unwrap_or_default())
}

#[test]
fn a_run_that_was_receipted_is_remembered_and_not_run_again() {
    let mut played = Played::start();
    let again = played.model.clone();
    played.say(Kind::Dispatch, wire::to_bytes(&again));
    let News::Ended { attempt, state, exit_code, .. } = played.news(&again) else { panic!("not ended") };
    assert_eq!((attempt, state.to_string().as_str(), exit_code), (1, "succeeded", Some(0)));
    // The same after a restart.
    played.restart_agent();
    let ask = played.ask(is_boot);
    played.answer(&ask, |_| ());
    played.forger.forget();
    played.say(Kind::Dispatch, wire::to_bytes(&again));
    assert!(matches!(played.news(&again), News::Ended { exit_code: Some(0), .. }));
    assert_eq!(played.forger.listener.marks().iter().filter(|m| *m == "first").count(), 1);
}

#[test]
fn the_direct_lane_is_answered_at_once_and_an_unknown_lane_is_refused() {
    let mut played = Played::start();
    let direct = played.dispatch("direct", |d| d.lane = Lane::Direct);
    played.wait_for("direct");
    played.result(&direct);
    // Draining: the direct lane hears so, the queue waits without a word.
    assert_eq!(local(&played.forger, &["drain"]).0, 0);
    played.forger.heartbeat(|beat| beat.state == AgentCondition::Draining);
    let queued = played.dispatch("queued", |_| ());
    let deferred = played.dispatch("no", |d| d.lane = Lane::Direct);
    let News::Deferred { reason, message } = played.news(&deferred) else { panic!("not deferred") };
    assert_eq!(reason, Refusal::Draining);
    assert!(message.unwrap().contains("draining"));
    assert!(!played.started("queued") && !played.started("no"));
    // Work that was left is asked for after the end of draining.
    assert_eq!(local(&played.forger, &["resume"]).0, 0);
    let ask = played.ask(|ask| matches!(ask.question, Question::Work { credit: 1.., .. }));
    let marked = Dispatch { answers: Some(ask.nonce), ..queued };
    played.say(Kind::Dispatch, wire::to_bytes(&marked));
    played.wait_for("queued");
    // A lane of the future.
    let mut draft = Draft::new(&played.forger, &played.model, "future");
    draft.bind();
    let run = draft.dispatch.run.clone();
    let mut body: Value = serde_json::to_value(&draft.dispatch).unwrap();
    body["lane"] = "teleport".into();
    let body = serde_json::to_vec(&body).unwrap();
    played.forger.send(LIVE, &Envelope::seal_bytes(Kind::Dispatch, &played.forger.controller, body));
    let future = Dispatch { run, ..draft.dispatch };
    let News::Refused { reason, message } = played.news(&future) else { panic!("not refused") };
    assert_eq!(reason, Refusal::UnsupportedVersion);
    assert!(message.contains("lane"), "{message}");
    assert!(!played.started("future"));
}

#[test]
fn probes_are_answered_and_bounded() {
    let mut played = Played::start();
    let nonces: Vec<Nonce> = (0..60).map(|_| Nonce::generate()).collect();
    for nonce in &nonces {
        let probe = Probe { v: VERSION, to: played.model.to.clone(), nonce: *nonce };
        played.say(Kind::Probe, wire::to_bytes(&probe));
    }
    let beat = played.forger.heartbeat(|beat| beat.probe.is_some_and(|nonce| nonces.contains(&nonce)));
    assert!(beat.instance.is_some());
    // What comes after them was read after them.
    let last = played.dispatch("last", |d| d.lane = Lane::Direct);
    played.result(&last);
    let answered = played.forger.seen_so_far(HEARTBEAT).into_iter().filter(|m| {
        wire::read::<Heartbeat>(&m.payload).is_ok_and(|b| b.probe.is_some_and(|n| nonces.contains(&n)))
    });
    let answered = answered.count();
    assert!((1..60).contains(&answered), "{answered} of 60 probes were answered");
}

#[test]
fn a_copied_journal_takes_a_new_incarnation_and_starts_nothing_of_the_old_one() {
    let mut played = Played::start();
    let old = played.model.to.incarnation;
    played.restart_agent();
    let first = played.ask(is_boot);
    assert_eq!(first.from.incarnation, old);
    // Before the welcome nothing starts, whatever comes.
    let early = played.dispatch("early", |_| ());
    let refused = played.dispatch("early", |d| d.lane = Lane::Direct);
    played.answer(&first, |a| (a.welcome, a.renew, a.message) = (false, true, Some("a copy".into())));
    assert!(matches!(played.news(&refused), News::Deferred { .. }));
    let second = played.ask(|ask| is_boot(ask) && ask.from.incarnation != old);
    let Question::Work { credit, instance, .. } = &second.question else { panic!("no question for work") };
    assert_eq!(*credit, 0, "nothing is to be sent before the welcome");
    assert!(instance.is_some());
    played.answer(&second, |_| ());
    // What was bound to the old incarnation stays there.
    played.forger.heartbeat(|beat| beat.from.incarnation == second.from.incarnation);
    played.say(Kind::Dispatch, wire::to_bytes(&early));
    let News::Refused { reason, .. } = played.news(&early) else { panic!("not refused") };
    assert_eq!(reason, Refusal::WrongIncarnation);
    // The new one works, and knows what the old one ran.
    let third = played.ask(|ask| ask.from.incarnation == second.from.incarnation && !is_boot(ask));
    played.answer(&third, |_| ());
    let to = To { incarnation: second.from.incarnation, ..played.model.to.clone() };
    let mut again = played.model.clone();
    again.to = to.clone();
    played.forger.forget();
    played.say(Kind::Dispatch, wire::to_bytes(&again));
    assert!(matches!(played.news(&again), News::Ended { .. }));
    let new = played.dispatch("new", |d| d.to = to);
    played.wait_for("new");
    played.result(&new);
    assert!(!played.started("early"));
}

#[test]
fn the_direct_lane_waits_for_the_moments_until_an_agent_is_welcome() {
    let mut played = Played::start();
    played.restart_agent();
    let boot = played.ask(is_boot);
    // Nobody answers: it is told while somebody still listens, and does not start later.
    let never = played.dispatch("never", |d| d.lane = Lane::Direct);
    let News::Deferred { reason, .. } = played.news(&never) else { panic!("not deferred") };
    assert_eq!(reason, Refusal::GivenBack);
    let early = played.dispatch("early", |d| d.lane = Lane::Direct);
    let cancelled = played.dispatch("cancelled", |d| d.lane = Lane::Direct);
    let (to, run) = (played.model.to.clone(), cancelled.run.clone());
    let cancel = Cancel { v: VERSION, to, run, attempt: 1, issued_ms: now_ms(), hard: false };
    played.say(Kind::Cancel, wire::to_bytes(&cancel));
    let News::Refused { reason, .. } = played.news(&cancelled) else { panic!("not cancelled") };
    assert_eq!(reason, Refusal::Cancelled);
    assert!(!played.started("early"));
    let latest = played.ask(|ask| is_boot(ask) && ask.nonce != boot.nonce);
    played.answer(&latest, |_| ());
    played.wait_for("early");
    played.result(&early);
    assert!(!played.started("never") && !played.started("cancelled"));
}

#[test]
fn work_that_waits_is_not_overtaken() {
    let mut played = Played::start();
    played.restart_agent();
    let boot = played.ask(is_boot);
    played.answer(&boot, |a| a.waiting = 2);
    let ask = played.ask(|ask| !is_boot(ask));
    // Comes by, and is not its turn.
    played.dispatch("overtakes", |_| ());
    let first = played.dispatch("first in line", |d| d.answers = Some(ask.nonce));
    played.wait_for("first in line");
    played.result(&first);
    assert!(!played.started("overtakes"));
    played.forger.forget();
    played.answer(&ask, |a| a.waiting = 1);
    let ask = played.ask(|ask| !is_boot(ask));
    let second = played.dispatch("second in line", |d| d.answers = Some(ask.nonce));
    played.result(&second);
    played.forger.forget();
    played.answer(&ask, |_| ());
    // The one that came by was left after the question: it may be missing from the answer, so it is asked for.
    assert!(!played.started("overtakes"));
    let live = played.dispatch("live", |_| ());
    played.result(&live);
}

#[test]
fn a_dispatch_that_says_more_is_followed_by_a_question() {
    let mut played = Played::start();
    played.dispatch("first of three", |d| d.more = true);
    let second = played.dispatch("second of three", |_| ());
    let third = played.dispatch("third of three", |_| ());
    played.wait_for("first of three");
    let ask = played.ask(|ask| matches!(ask.question, Question::Work { credit: 1.., .. }));
    assert!(!played.started("second of three"), "it comes by, and its turn is the controller's to say");
    // The answer travels a shorter way than the dispatches that it speaks of.
    played.answer(&ask, |a| (a.given, a.waiting) = (2, 0));
    for run in [second, third] {
        played.say(Kind::Dispatch, wire::to_bytes(&Dispatch { answers: Some(ask.nonce), ..run }));
    }
    played.wait_for("second of three");
    played.wait_for("third of three");
}

#[test]
fn a_cancellation_that_came_first_prevents_the_start() {
    let mut played = Played::start();
    let mut draft = Draft::new(&played.forger, &played.model, "cancelled");
    draft.bind();
    let dispatch = draft.dispatch.clone();
    let cancel = Cancel {
        v: VERSION,
        to: dispatch.to.clone(),
        run: dispatch.run.clone(),
        attempt: 1,
        issued_ms: now_ms(),
        hard: false,
    };
    played.say(Kind::Cancel, wire::to_bytes(&cancel));
    let refused = |news: &News| matches!(news, News::Refused { reason: Refusal::Cancelled, .. });
    assert!(refused(&played.news(&dispatch)));
    played.forger.forget();
    played.say(Kind::Dispatch, wire::to_bytes(&dispatch));
    assert!(refused(&played.news(&dispatch)));
    // Another attempt is another matter, and it leaves the older one refused.
    let second = Dispatch { attempt: 2, ..dispatch.clone() };
    played.say(Kind::Dispatch, wire::to_bytes(&second));
    played.wait_for("cancelled");
    let result = played.result(&second);
    assert_eq!(result.attempt, 2);
    played.forger.forget();
    played.say(Kind::Dispatch, wire::to_bytes(&dispatch));
    assert_eq!(played.result(&dispatch).attempt, 2, "the newer attempt's result is the answer");
    assert_eq!(played.forger.listener.marks().iter().filter(|m| *m == "cancelled").count(), 1);
}

#[test]
fn a_sealed_secret_reaches_its_script_and_leaves_nowhere() {
    let mut played = Played::start();
    let probe = Probe { v: VERSION, to: played.model.to.clone(), nonce: Nonce::generate() };
    played.say(Kind::Probe, wire::to_bytes(&probe));
    let curve = played.forger.heartbeat(|beat| beat.probe == Some(probe.nonce)).curve_key.unwrap();
    let value = "hunter2-and-more";
    let script = "cat $SALLY_SECRETS_DIR/token; printf '{\"said\": \"%s\"}' $(cat $SALLY_SECRETS_DIR/token) >&3; \
                  echo $(wc -c < $SALLY_SECRETS_DIR/token) >&2";
    let order = |played: &Played, request: &str| {
        let mut draft = Draft::new(&played.forger, &played.model, "secret");
        let (agent, by) = (&played.model.to.agent_key, played.forger.caller.public());
        let id = request.parse().unwrap();
        let sealed = secret::seal("token", format!("{value}\n").as_bytes(), agent, &curve, &id, by).unwrap();
        draft.order.request_id = id;
        draft.order.task.secrets = vec![sealed];
        draft.order.task.args = vec!["bash".into(), "-c".into(), script.into()];
        draft
    };
    let mut draft = order(&played, "sealed-1");
    draft.bind();
    played.forger.send(LIVE, &draft.seal());
    let result = played.result(&draft.dispatch);
    let text = |end: &StreamEnd| String::from_utf8(end.inline_bytes().unwrap()).unwrap();
    assert_eq!((text(&result.stdout), text(&result.stderr)), ("***\n".into(), "17\n".into()));
    assert_eq!(result.result.unwrap().get(), "{\"said\":\"***\"}");
    // On disk it is only in what the script itself printed.
    let state = played.forger.up.dir().join("agents/local-1/state");
    let folder = state.join(format!("runs/{}.1", draft.dispatch.run));
    let holds = |path: &std::path::Path| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(value.len()).any(|part| part == value.as_bytes())
    };
    assert!(folder.join("run.json").exists() && !holds(&folder.join("run.json")));
    assert!(!holds(&state.join("journal.redb")));
    assert!(!holds(&played.forger.up.dir().join("log/local-1.log")));
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(state.join("curve.seed")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // The same sealed bytes in another order open nothing.
    let mut stolen = order(&played, "sealed-2");
    stolen.order.task.secrets = draft.order.task.secrets.clone();
    stolen.bind();
    played.forger.send(LIVE, &stolen.seal());
    let News::Refused { reason, message } = played.news(&stolen.dispatch) else { panic!("not refused") };
    assert_eq!(reason, Refusal::SecretsUnreadable);
    assert!(message.contains("token") && message.contains("another order"), "{message}");
}

#[test]
fn drain_waits_until_nothing_is_left_and_outlives_a_restart() {
    let mut forger = Forger::start(1);
    let command = forger.listener.effect_that_waits("runs");
    let mut args = vec!["exec", "-a", "local-1", "--profile", "net", "--detach", "--"];
    args.extend(command.iter().map(String::as_str));
    let job = forger.up.sally(&args).expect(0).text().trim().to_owned();
    eventually("it runs", || forger.listener.marks().contains(&"runs".to_owned()).then_some(()));
    assert_eq!(local(&forger, &["drain", "--wait", "--limit", "1"]).0, 1, "one run is left");
    let status = local(&forger, &["status", "-o", "json"]).1;
    assert_eq!((&status["alive"], &status["status"]["draining"]), (&true.into(), &true.into()), "{status}");
    assert_eq!(status["status"]["running"].as_array().map(Vec::len), Some(1), "{status}");
    let pid = forger.up.pid_of("local-1").unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let other = |status: &Value| status["status"]["pid"] != pid && status["alive"] == true;
    let status = eventually("another process", || {
        let status = local(&forger, &["status", "-o", "json"]).1;
        (other(&status) && status["status"]["draining"] == true).then_some(status)
    });
    assert_eq!(status["drain_asked"], true);
    forger.listener.let_go();
    assert_eq!(local(&forger, &["drain", "--wait"]).0, 0);
    assert_eq!(forger.up.json(&["job", "wait", &job], 0)["runs"][0]["state"], "succeeded");
    assert_eq!(local(&forger, &["resume"]).0, 0);
    forger.genuine("after");
}

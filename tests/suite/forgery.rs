//! Who owns the broker cannot make code run, forge a result, a receipt or a cancellation.
//!
//! Everything here is published with the controller's own credentials, so nothing but signatures and what
//! they bind stands between a message and a script. A script's effect is outside Sally: it calls a listener
//! of the test and says its mark.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures_util::{FutureExt as _, StreamExt as _};
use sally_common::clock::now_ms;
use sally_common::id::{Digest, JobId, RunId};
use sally_common::key::SigningKey;
use sally_common::name::Agent;
use sally_common::wire::command::{Cancel, Dispatch, Receipt, Stored};
use sally_common::wire::order::{Order, OrderSignature};
use sally_common::wire::record::RunState;
use sally_common::wire::report::{Heartbeat, ResultMessage};
use sally_common::wire::{self, Envelope, HEADER_KEY, HEADER_KIND, Kind, VERSION};

use crate::harness::{LIMIT, Up, eventually};
use crate::outside;

const LIVE: &str = "sally.live.local.local-1";
const RESULT: &str = "sally.result.local.local-1";

/// Notes who calls, and holds each call open until it is told to let go.
pub struct Listener {
    port: u16,
    calls: Arc<Mutex<Vec<(String, TcpStream)>>>,
}

impl Listener {
    fn start() -> Listener {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let kept = calls.clone();
        // Ends with the test's process: it only accepts.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                let mut mark = Vec::new();
                let mut byte = [0];
                while stream.read(&mut byte).is_ok_and(|n| n == 1) && byte[0] != b'\n' {
                    mark.push(byte[0]);
                }
                kept.lock().unwrap().push((String::from_utf8_lossy(&mark).into_owned(), stream));
            }
        });
        Listener { port, calls }
    }

    pub fn marks(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|(mark, _)| mark.clone()).collect()
    }

    /// Closes every call: whoever waits at its end goes on.
    pub fn let_go(&self) {
        for (_, stream) in self.calls.lock().unwrap().iter() {
            // Closed already by the other side: nobody waits.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// A command that calls and says its mark.
    pub fn effect(&self, mark: &str) -> Vec<String> {
        let text = format!("exec 5<>/dev/tcp/127.0.0.1/{}; echo {mark} >&5", self.port);
        vec!["bash".into(), "-c".into(), text]
    }

    /// The same, and waits until the call is closed.
    pub fn effect_that_waits(&self, mark: &str) -> Vec<String> {
        let mut command = self.effect(mark);
        command[2].push_str("; read -r line <&5; exit 0");
        command
    }
}

/// Whoever owns the broker, with everything that is not a key of somebody else.
pub struct Forger {
    pub up: Up,
    pub listener: Listener,
    runtime: tokio::runtime::Runtime,
    client: async_nats::Client,
    /// Everything that goes by, from its beginning.
    seen: async_nats::Subscriber,
    kept: Vec<async_nats::Message>,
    pub controller: SigningKey,
    pub caller: SigningKey,
    /// A key that nobody knows.
    stranger: SigningKey,
}

fn seed(up: &Up, name: &str) -> SigningKey {
    SigningKey::read(&up.dir().join(name)).unwrap()
}

fn caller_seed(up: &Up) -> PathBuf {
    let keys = fs::read_dir(up.dir().join("keys")).unwrap().flatten().map(|e| e.path());
    let is_caller = |p: &PathBuf| p.file_name().unwrap().to_string_lossy().starts_with("caller.");
    keys.into_iter().find(is_caller).unwrap()
}

impl Forger {
    pub fn start(agents: u32) -> Forger {
        let up = Up::start(agents);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config = fs::read_to_string(up.dir().join("serve.toml")).unwrap();
        let config: toml::Table = toml::from_str(&config).unwrap();
        let (client, seen) = runtime.block_on(async {
            let options =
                async_nats::ConnectOptions::with_credentials_file(up.dir().join("creds/controller.creds"));
            let client = options.await.unwrap().connect(config["url"].as_str().unwrap()).await.unwrap();
            let seen = client.subscribe("sally.>").await.unwrap();
            client.flush().await.unwrap();
            (client, seen)
        });
        Forger {
            controller: seed(&up, "keys/controller.seed"),
            caller: SigningKey::read(&caller_seed(&up)).unwrap(),
            stranger: SigningKey::generate(),
            listener: Listener::start(),
            kept: Vec::new(),
            up,
            runtime,
            client,
            seen,
        }
    }

    /// Waits for a message on a subject that this finds good.
    pub fn await_message<T>(
        &mut self,
        subject: &str,
        mut pick: impl FnMut(&async_nats::Message) -> Option<T>,
    ) -> T {
        let pick = |m: &async_nats::Message| (m.subject.as_str() == subject).then(|| pick(m)).flatten();
        let mut pick = pick;
        if let Some(found) = self.kept.iter().find_map(&mut pick) {
            return found;
        }
        self.runtime.block_on(async {
            let wait = async {
                loop {
                    let message = self.seen.next().await.unwrap();
                    let found = pick(&message);
                    self.kept.push(message);
                    if let Some(found) = found {
                        return found;
                    }
                }
            };
            tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("nothing came on {subject}"))
        })
    }

    /// What has gone by on a subject since it last forgot.
    pub fn seen_so_far(&mut self, subject: &str) -> Vec<async_nats::Message> {
        let _guard = self.runtime.enter();
        while let Some(message) = self.seen.next().now_or_never().flatten() {
            self.kept.push(message);
        }
        self.kept.iter().filter(|m| m.subject.as_str() == subject).cloned().collect()
    }

    /// Forgets what went by until now.
    pub fn forget(&mut self) {
        let _guard = self.runtime.enter();
        while self.seen.next().now_or_never().flatten().is_some() {}
        self.kept.clear();
    }

    fn publish(&self, subject: &str, headers: Option<async_nats::HeaderMap>, body: &[u8]) {
        self.runtime.block_on(async {
            let body = body.to_vec().into();
            match headers {
                Some(headers) => self.client.publish_with_headers(subject.to_owned(), headers, body).await,
                None => self.client.publish(subject.to_owned(), body).await,
            }
            .unwrap();
            self.client.flush().await.unwrap();
        });
    }

    pub fn send(&self, subject: &str, envelope: &Envelope) {
        self.publish(subject, Some(envelope.headers()), &envelope.body);
    }

    /// What an agent has refused so far, by reason, as the controller shows it.
    fn refused(&self, agent: &str) -> BTreeMap<String, u64> {
        let record = self.up.json(&["agent", "show", agent], 0);
        serde_json::from_value(record["refused"].clone()).unwrap()
    }

    /// Waits until a reason stands in the agent's record more often than before, and in its log.
    #[track_caller]
    fn expect_refused(&self, case: &str, reason: &str, before: &BTreeMap<String, u64>) {
        let count = |all: &BTreeMap<String, u64>| all.get(reason).copied().unwrap_or(0);
        eventually(&format!("{case} is refused with {reason}"), || {
            let now = self.refused("local-1");
            let others = |all: &BTreeMap<String, u64>| {
                all.iter().filter(|(r, _)| *r != reason).map(|(_, n)| n).sum::<u64>()
            };
            assert_eq!(others(&now), others(before), "{case}: refused for another reason: {now:?}");
            (count(&now) > count(before)).then_some(())
        });
        let log = fs::read_to_string(self.up.dir().join("log/local-1.log")).unwrap();
        assert!(
            log.contains(&format!("reason={reason}")),
            "{case}: {reason} is not in the agent's log: {log}"
        );
    }

    /// Waits until the controller's log says that it refused something on this subject for this reason.
    #[track_caller]
    fn expect_logged(&self, case: &str, subject: &str, reason: &str, times: usize) {
        eventually(&format!("{case} is in the controller's log as {reason}"), || {
            let log = fs::read_to_string(self.up.dir().join("log/serve.log")).unwrap();
            let lines = log.lines().filter(|l| {
                l.contains("refused") && l.contains(subject) && l.contains(&format!("reason={reason}"))
            });
            (lines.count() >= times).then_some(())
        });
    }

    /// Runs a command that has an effect, as anyone may, and returns its dispatch as it went by.
    pub fn genuine(&mut self, mark: &str) -> (async_nats::Message, Dispatch) {
        let command = self.listener.effect(mark);
        let mut args = vec!["exec", "-a", "local-1", "--profile", "net", "--"];
        args.extend(command.iter().map(String::as_str));
        let job = self.up.json(&args, 0)["job"]["id"].as_str().unwrap().to_owned();
        eventually("its effect", || self.listener.marks().contains(&mark.to_owned()).then_some(()));
        self.await_message(LIVE, |m| {
            let dispatch: Dispatch = wire::read(&m.payload).ok()?;
            (dispatch.run.job().to_string() == job).then(|| (m.clone(), dispatch))
        })
    }
}

/// A dispatch as a controller would make it, to be spoilt in one way.
pub struct Draft {
    pub dispatch: Dispatch,
    pub order: Order,
    caller: SigningKey,
    controller: SigningKey,
}

impl Draft {
    /// A new run with the effect of this mark, on the model of a genuine one.
    pub fn new(forger: &Forger, model: &Dispatch, mark: &str) -> Draft {
        let mut dispatch = model.clone();
        dispatch.run = new_run();
        let mut order: Order = wire::read(model.order.as_ref().unwrap().as_bytes()).unwrap();
        order.task.args = forger.listener.effect(mark);
        let (caller, controller) = (copy(&forger.caller), copy(&forger.controller));
        Draft { dispatch, order, caller, controller }
    }

    /// Signs the order and binds it.
    pub fn bind(&mut self) {
        let bytes = wire::to_bytes(&self.order);
        let signature = self.caller.sign(Kind::Order, &bytes);
        self.dispatch.order_digest = Digest::of(&bytes);
        self.dispatch.order_bytes = bytes.len() as u64;
        self.dispatch.order_signatures =
            vec![OrderSignature { key: self.caller.public().clone(), signature }];
        self.dispatch.order = Some(String::from_utf8(bytes).unwrap());
    }

    pub fn seal(&self) -> Envelope {
        Envelope::seal(Kind::Dispatch, &self.controller, &self.dispatch)
    }

    pub fn done(mut self) -> Envelope {
        self.bind();
        self.seal()
    }
}

fn new_run() -> RunId {
    JobId::generate(now_ms()).run(0)
}

fn copy(key: &SigningKey) -> SigningKey {
    SigningKey::from_seed(&key.seed()).unwrap()
}

/// The body with the lowest bit of one byte of this text turned: nothing else is different.
fn turn_bit(body: &mut [u8], text: &str) {
    let at = body.windows(text.len()).position(|w| w == text.as_bytes()).unwrap();
    body[at] ^= 1;
}

#[test]
fn no_forged_task_message_runs_and_each_shows_its_reason() {
    let mut forger = Forger::start(2);
    let (replay, model) = forger.genuine("genuine");
    let (_, other) = {
        let record = forger.up.json(&["exec", "-a", "local-2", "--", "true"], 0);
        let job = record["job"]["id"].as_str().unwrap().to_owned();
        forger.await_message("sally.live.local.local-2", |m| {
            let dispatch: Dispatch = wire::read(&m.payload).ok()?;
            (dispatch.run.job().to_string() == job).then(|| (m.clone(), dispatch))
        })
    };

    // The measure: the same message, unspoilt, runs. Whatever below does not run fails by its one defect.
    let control = Draft::new(&forger, &model, "control").done();
    forger.send(LIVE, &control);
    eventually("a well-made message runs", || {
        forger.listener.marks().contains(&"control".to_owned()).then_some(())
    });

    let stranger = copy(&forger.stranger);
    let draft = |mark: &str| Draft::new(&forger, &model, mark);
    // Headers may differ from what the envelope says, so each case is headers and body.
    let plain = |envelope: Envelope| (Some(envelope.headers()), envelope.body);
    let mut cases = Vec::new();
    let mut case =
        |name: &'static str, reason: &'static str, message: (Option<async_nats::HeaderMap>, Vec<u8>)| {
            cases.push((name, reason, message));
        };

    let mut altered = plain(draft("altered").done());
    turn_bit(&mut altered.1, "altered");
    case("altered by one bit", "bad-signature", altered);

    let mut foreign = draft("foreign");
    foreign.controller = copy(&stranger);
    case("signed by another key", "unknown-key", plain(foreign.done()));

    let mut claimed = draft("claimed");
    claimed.controller = copy(&stranger);
    let mut claimed = plain(claimed.done());
    claimed.0.as_mut().unwrap().insert(HEADER_KEY, forger.controller.public().to_string());
    case("signed by another key that claims to be the controller's", "bad-signature", claimed);

    let mut of_caller = draft("of-caller");
    of_caller.controller = copy(&forger.caller);
    case("signed by a caller in place of a controller", "unknown-key", plain(of_caller.done()));

    let mut of_agent = draft("of-agent");
    of_agent.controller = seed(&forger.up, "agents/local-2/agent.seed");
    case("signed by another agent", "unknown-key", plain(of_agent.done()));

    let mut strange_order = draft("strange-order");
    strange_order.caller = copy(&stranger);
    case("an order of a stranger, dispatched by the controller", "unknown-key", plain(strange_order.done()));

    let mut changed_order = draft("changed-order");
    changed_order.bind();
    let text = changed_order.dispatch.order.take().unwrap().replace("changed-order", "changed-0rder");
    changed_order.dispatch.order = Some(text.clone());
    case("an order altered under its digest", "wrong-digest", plain(changed_order.seal()));
    changed_order.dispatch.order_digest = Digest::of(text.as_bytes());
    case("an order altered with its digest", "bad-signature", plain(changed_order.seal()));

    let mut bare_order = draft("bare-order");
    bare_order.bind();
    bare_order.dispatch.order_signatures.clear();
    case("an order that nobody signed", "unsigned", plain(bare_order.seal()));

    let mut for_another = draft("for-another");
    for_another.dispatch.to = other.to.clone();
    case("for another agent", "misdirected", plain(for_another.done()));

    let mut for_another_key = draft("for-another-key");
    for_another_key.dispatch.to.agent_key = other.to.agent_key.clone();
    case("for another agent's key", "misdirected", plain(for_another_key.done()));

    let mut for_another_life = draft("for-another-life");
    for_another_life.dispatch.to.incarnation = other.to.incarnation;
    case("for another incarnation", "wrong-incarnation", plain(for_another_life.done()));

    let mut not_a_target = draft("not-a-target");
    not_a_target.order.targets.agents = vec!["local-2".into()];
    not_a_target.order.targets.all = false;
    case("an order for another agent, dispatched to this one", "not-a-target", plain(not_a_target.done()));

    let mut late = draft("late");
    late.dispatch.expires_ms = now_ms() - 1;
    case("a dispatch that has expired", "expired", plain(late.done()));

    let mut late_order = draft("late-order");
    late_order.order.created_ms = now_ms() - 2_000;
    late_order.order.expires_ms = now_ms() - 1;
    case("an order that has expired", "expired", plain(late_order.done()));

    case("without any header", "unsigned", (None, draft("bare").done().body));

    let mut unsigned = plain(draft("unsigned").done());
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(HEADER_KIND, Kind::Dispatch.word());
    headers.insert(HEADER_KEY, forger.controller.public().to_string());
    unsigned.0 = Some(headers);
    case("without a signature", "unsigned", unsigned);

    let relabelled = draft("relabelled").done();
    let relabelled = Envelope::seal_bytes(Kind::Cancel, &forger.controller, relabelled.body);
    let mut headers = relabelled.headers();
    headers.insert(HEADER_KIND, Kind::Dispatch.word());
    case("signed as a message of another kind", "bad-signature", (Some(headers), relabelled.body));

    for (name, reason, (headers, body)) in cases {
        let before = forger.refused("local-1");
        forger.publish(LIVE, headers, &body);
        forger.expect_refused(name, reason, &before);
    }

    // Replayed: as it went by, after its run has ended; and once more to the agent's next process. While its
    // result has no receipt yet the answer to a copy is the result, so it is sent until it is refused.
    for process in ["the same process", "the next process"] {
        let before = forger.refused("local-1");
        let count = |all: &BTreeMap<String, u64>| all.get("replayed").copied().unwrap_or(0);
        eventually(&format!("a replay to {process} is refused"), || {
            forger.publish(LIVE, replay.headers.clone(), &replay.payload);
            (count(&forger.refused("local-1")) > count(&before)).then_some(())
        });
        if process == "the same process" {
            let pid = forger.up.pid_of("local-1").unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
            eventually("another process of the agent, which has refused nothing yet", || {
                let next = forger.up.pid_of("local-1").filter(|p| *p != pid && outside::parent(*p).is_some());
                next.filter(|_| forger.refused("local-1").is_empty())
            });
        }
    }

    // Whatever the agent had still before it is behind it now: it has run this, on the same subject.
    forger.genuine("afterwards");
    assert_eq!(forger.listener.marks(), ["genuine", "control", "afterwards"], "effects outside Sally");
}

#[test]
fn no_forged_cancellation_ends_a_run() {
    let mut forger = Forger::start(2);
    let command = forger.listener.effect_that_waits("waits");
    let mut args = vec!["exec", "-a", "local-1", "--profile", "net", "--detach", "-o", "json", "--"];
    args.extend(command.iter().map(String::as_str));
    let job = forger.up.sally(&args).expect(0).json()["job"]["id"].as_str().unwrap().to_owned();
    eventually("the script is there", || forger.listener.marks().contains(&"waits".to_owned()).then_some(()));
    let dispatch = forger.await_message(LIVE, |m| wire::read::<Dispatch>(&m.payload).ok());

    let cancel = |to| Cancel {
        v: VERSION,
        to,
        run: dispatch.run.clone(),
        attempt: dispatch.attempt,
        issued_ms: now_ms(),
        hard: true,
    };
    let good = Envelope::seal(Kind::Cancel, &forger.controller, &cancel(dispatch.to.clone()));
    let mut altered = good.clone();
    turn_bit(&mut altered.body, "true");
    let mut away = dispatch.to.clone();
    away.agent = Agent::new("local-2").unwrap();
    let agent_2 = seed(&forger.up, "agents/local-2/agent.seed");
    let own = seed(&forger.up, "agents/local-1/agent.seed");
    let by = |key: &SigningKey| Envelope::seal(Kind::Cancel, key, &cancel(dispatch.to.clone()));
    for (name, reason, envelope) in [
        ("altered", "bad-signature", altered),
        ("of a stranger", "unknown-key", by(&forger.stranger)),
        ("of a caller", "unknown-key", by(&forger.caller)),
        ("of another agent", "unknown-key", by(&agent_2)),
        ("of the agent itself", "unknown-key", by(&own)),
        ("for another agent", "misdirected", Envelope::seal(Kind::Cancel, &forger.controller, &cancel(away))),
    ] {
        let before = forger.refused("local-1");
        forger.send(LIVE, &envelope);
        forger.expect_refused(&format!("a cancellation {name}"), reason, &before);
    }
    // It runs still, and ends by itself.
    forger.listener.let_go();
    let record = forger.up.json(&["job", "wait", &job], 0);
    assert_eq!(record["runs"][0]["state"], "succeeded");

    // The measure: a cancellation by the controller's key does end one.
    let job = forger.up.sally(&args).expect(0).json()["job"]["id"].as_str().unwrap().to_owned();
    eventually("the second script is there", || (forger.listener.marks().len() == 2).then_some(()));
    let dispatch = forger.await_message(LIVE, |m| {
        wire::read::<Dispatch>(&m.payload).ok().filter(|d| d.run.job().to_string() == job)
    });
    let good = Cancel { run: dispatch.run.clone(), ..cancel(dispatch.to.clone()) };
    forger.send(LIVE, &Envelope::seal(Kind::Cancel, &forger.controller, &good));
    forger.up.sally(&["job", "wait", &job]).expect(9);
}

/// Keeps a process stopped; dropped, it goes on.
pub struct Stopped(i32);

impl Stopped {
    pub fn new(pid: i32) -> Stopped {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0), nix::sys::signal::Signal::SIGCONT);
    }
}

#[test]
fn no_forged_receipt_frees_a_result() {
    let mut forger = Forger::start(2);
    let command = forger.listener.effect_that_waits("waits");
    let mut args = vec!["exec", "-a", "local-1", "--profile", "net", "--detach", "-o", "json", "--"];
    args.extend(command.iter().map(String::as_str));
    let job = forger.up.sally(&args).expect(0).json()["job"]["id"].as_str().unwrap().to_owned();
    eventually("the script is there", || forger.listener.marks().contains(&"waits".to_owned()).then_some(()));
    let dispatch = forger.await_message(LIVE, |m| wire::read::<Dispatch>(&m.payload).ok());

    // With the controller stopped the result stays the agent's.
    let controller = Stopped::new(forger.up.pid_of("serve").unwrap());
    forger.forget();
    forger.listener.let_go();
    let digest = forger.await_message(RESULT, |m| Some(Digest::of(&m.payload)));

    let receipt = |to, digest| Receipt {
        v: VERSION,
        to,
        run: dispatch.run.clone(),
        attempt: dispatch.attempt,
        stored: Stored::Result { digest },
    };
    let good = receipt(dispatch.to.clone(), digest);
    let agent_2 = seed(&forger.up, "agents/local-2/agent.seed");
    let mut altered = Envelope::seal(Kind::Receipt, &forger.controller, &good);
    turn_bit(&mut altered.body, "result");
    let mut away = dispatch.to.clone();
    away.agent = Agent::new("local-2").unwrap();
    let strange = Envelope::seal(Kind::Receipt, &forger.stranger, &good);
    let mut before = 0;
    for (reason, envelope) in [
        ("bad-signature", altered),
        ("unknown-key", strange.clone()),
        ("unknown-key", Envelope::seal(Kind::Receipt, &agent_2, &good)),
        ("misdirected", Envelope::seal(Kind::Receipt, &forger.controller, &receipt(away, digest))),
        // Once more, so that whatever the one before did would have been done.
        ("unknown-key", strange.clone()),
    ] {
        forger.forget();
        forger.send(LIVE, &envelope);
        let all = |beat: &Heartbeat| beat.refused.values().sum::<u64>();
        let beat = forger.heartbeat(|beat| all(beat) > before && beat.spool.results == 1);
        before = all(&beat);
        let reasons: Vec<String> = beat.refused.keys().map(|r| r.code()).collect();
        assert!(reasons.contains(&reason.to_owned()), "{reason} is not among {reasons:?}");
    }
    // The measure: with the controller's signature it is believed. The next refusal brings a heartbeat soon.
    forger.forget();
    forger.send(LIVE, &Envelope::seal(Kind::Receipt, &forger.controller, &good));
    forger.send(LIVE, &strange);
    forger.heartbeat(|beat| beat.spool.results == 0);
    // The result itself was on its way all the time.
    drop(controller);
    eventually("the controller is back", || {
        (forger.up.sally(&["job", "show", &job]).code == 0).then_some(())
    });
    let record = forger.up.json(&["job", "wait", &job], 0);
    assert_eq!(record["runs"][0]["state"], "succeeded");
}

impl Forger {
    /// The next heartbeat of `local-1` that this finds good.
    pub fn heartbeat(&mut self, good: impl Fn(&Heartbeat) -> bool) -> Heartbeat {
        self.await_message("sally.heartbeat.local.local-1", |m| {
            wire::read::<Heartbeat>(&m.payload).ok().filter(|beat| good(beat))
        })
    }
}

#[test]
fn no_forged_result_becomes_an_outcome() {
    let mut forger = Forger::start(2);
    let command = forger.listener.effect_that_waits("waits");
    let mut args = vec!["exec", "-a", "local-1", "--profile", "net", "--detach", "-o", "json", "--"];
    args.extend(command.iter().map(String::as_str));
    // A model of a result: of another run of the same agent.
    forger.up.json(&["exec", "-a", "local-1", "--", "sh", "-c", "echo model"], 0);
    let model = forger.await_message(RESULT, |m| wire::read::<ResultMessage>(&m.payload).ok());
    forger.up.json(&["exec", "-a", "local-2", "--", "true"], 0);
    let model_2 =
        forger.await_message("sally.result.local.local-2", |m| wire::read::<ResultMessage>(&m.payload).ok());
    let job = forger.up.sally(&args).expect(0).json()["job"]["id"].as_str().unwrap().to_owned();
    eventually("the script is there", || forger.listener.marks().contains(&"waits".to_owned()).then_some(()));
    let dispatch = forger.await_message(LIVE, |m| {
        wire::read::<Dispatch>(&m.payload).ok().filter(|d| d.run.job().to_string() == job)
    });

    eventually("the controller knows that it runs", || {
        (forger.up.json(&["job", "show", &job], 0)["runs"][0]["state"] == "running").then_some(())
    });

    let forged = |mut result: ResultMessage| {
        result.run = dispatch.run.clone();
        result.attempt = dispatch.attempt;
        result.order_digest = dispatch.order_digest;
        (result.state, result.exit_code) = (RunState::Failed, Some(66));
        result
    };
    let own = seed(&forger.up, "agents/local-1/agent.seed");
    let agent_2 = seed(&forger.up, "agents/local-2/agent.seed");
    let by = |key: &SigningKey| Envelope::seal(Kind::Result, key, &forged(model.clone()));
    let mut altered = by(&own);
    turn_bit(&mut altered.body, "66");
    let as_state = Envelope::seal_bytes(Kind::State, &own, by(&own).body);
    let second = "sally.result.local.local-2";
    for (n, (name, subject, reason, envelope)) in [
        ("altered", RESULT, "bad-signature", altered),
        ("of a stranger", RESULT, "unknown-key", by(&forger.stranger)),
        ("of a controller", RESULT, "unknown-key", by(&forger.controller)),
        ("of another agent", RESULT, "unknown-key", by(&agent_2)),
        ("signed as news", RESULT, "wrong-kind", as_state),
        // Its own subject, its own name, its own key; only the run is not its.
        (
            "of another agent, in its own name",
            second,
            "misdirected",
            Envelope::seal(Kind::Result, &agent_2, &forged(model_2.clone())),
        ),
        ("of another agent, in this one's name", second, "misdirected", by(&agent_2)),
    ]
    .into_iter()
    .enumerate()
    {
        let log = fs::read_to_string(forger.up.dir().join("log/serve.log")).unwrap();
        let is_it = |l: &&str| {
            l.contains("refused") && l.contains(subject) && l.contains(&format!("reason={reason}"))
        };
        let before = log.lines().filter(is_it).count();
        forger.send(subject, &envelope);
        forger.expect_logged(&format!("result {n}, {name},"), subject, reason, before + 1);
        let shown = forger.up.json(&["job", "show", &job], 0);
        assert_eq!(shown["runs"][0]["state"], "running", "a result {name} was believed");
    }
    // The true one is still believed.
    forger.listener.let_go();
    let record = forger.up.json(&["job", "wait", &job], 0);
    assert_eq!(
        (&record["runs"][0]["state"], &record["runs"][0]["exit_code"]),
        (&"succeeded".into(), &0.into())
    );
}

#[test]
fn an_order_of_a_caller_whom_nobody_trusts_is_refused_at_submission() {
    let up = Up::start(1);
    let listener = Listener::start();
    let stranger = SigningKey::generate();
    let seed = up.scratch().join("stranger.seed");
    fs::write(&seed, stranger.seed()).unwrap();
    let mut context: toml::Table =
        toml::from_str(&fs::read_to_string(up.dir().join("context.toml")).unwrap()).unwrap();
    context.insert("signing_key".into(), seed.to_str().unwrap().into());
    let path = up.scratch().join("stranger.toml");
    fs::write(&path, toml::to_string(&context).unwrap()).unwrap();
    let jobs = up.json(&["job", "ls"], 0);
    let command = listener.effect("stranger");
    let mut args =
        vec!["--context", path.to_str().unwrap(), "exec", "-a", "local-1", "--profile", "net", "--"];
    args.extend(command.iter().map(String::as_str));
    let said = up.sally(&args).expect(6);
    assert!(said.stderr.contains("trust list"), "{}", said.stderr);
    assert_eq!(up.json(&["job", "ls"], 0), jobs, "no job was made of it");
    // The same by one who is trusted has its effect: after it there is nothing left to wait for.
    let command = listener.effect("trusted");
    let mut args = vec!["exec", "-a", "local-1", "--profile", "net", "--"];
    args.extend(command.iter().map(String::as_str));
    up.sally(&args).expect(0);
    eventually("the effect", || (!listener.marks().is_empty()).then_some(()));
    assert_eq!(listener.marks(), ["trusted"]);
}

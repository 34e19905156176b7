//! The broker of `sally up` against a real nats-server: who may say what, what a reply subject can do, what comes back
//! after a kill. Needs a server: `make nats-server`, or `SALLY_NATS_SERVER`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is the test's failure")]

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::{
    self,
    stream::{Config, StorageType},
};
use async_nats::{Client, HeaderMap, Subscriber};
use futures_util::StreamExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sally::broker::config::StoreLimits;
use sally::broker::find::{self, NatsServer, Search};
use sally::broker::process::{Broker, BrokerSettings};
use sally::broker::state::StateDir;
use sally::broker::streams::{self, Change, TASKS, provision};
use sally::supervise::{ChildEvent, leftover};
use sally_common::nats::accounts::{CONTROLLER_INBOX, Role, Trust, caller_inbox, is_caller_inbox};
use sally_common::nats::connect::{Attempt, ConnectError, ConnectSettings, ConnectionEvent, connect};
use tokio::sync::mpsc;

/// Generous: a condition is awaited, this only bounds a failure.
const LIMIT: Duration = Duration::from_secs(30);

/// A server is needed; its absence is a failure that says what to do, never a test that did not run.
async fn server() -> NatsServer {
    match find::find(&Search::from_process(None)).await {
        Ok(server) => server,
        Err(error) => panic!("these tests drive a real broker: {error}"),
    }
}

struct Hub {
    state: StateDir,
    trust: Trust,
    broker: Broker,
    events: mpsc::UnboundedReceiver<ChildEvent>,
    // Last, so that it goes when nothing uses it any more.
    _dir: tempfile::TempDir,
}

/// A client and what its connection said.
struct User {
    client: Client,
    // Unbounded: the test reads it to the end.
    events: mpsc::UnboundedReceiver<ConnectionEvent>,
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

impl Hub {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let trust = state.trust("sally", &["dmz", "shop"], now()).unwrap();
        let (broker, events) = start(&state, &trust, None).await;
        Self { state, trust, broker, events, _dir: dir }
    }

    async fn user(&self, role: Role<'_>, inbox: Option<String>) -> User {
        let creds = self.state.issue(&self.trust, role, now()).unwrap();
        let mut settings = ConnectSettings::new(self.broker.url(), creds, "test");
        settings.inbox_prefix = inbox;
        let (sender, events) = mpsc::unbounded_channel();
        let client = connect(&settings, move |event| {
            let _ = sender.send(event);
        });
        User { client: client.await.unwrap(), events }
    }

    async fn controller(&self) -> User {
        self.user(Role::Controller, Some(CONTROLLER_INBOX.to_owned())).await
    }

    async fn agent(&self, zone: &str, agent: &str) -> User {
        self.user(Role::Agent { zone, agent }, None).await
    }

    /// The controller with its stream.
    async fn ready(&self) -> (User, jetstream::Context) {
        let controller = self.controller().await;
        let js = jetstream::new(controller.client.clone());
        provision(&js, "sally").await.unwrap();
        (controller, js)
    }
}

async fn start(
    state: &StateDir,
    trust: &Trust,
    guard: Option<PathBuf>,
) -> (Broker, mpsc::UnboundedReceiver<ChildEvent>) {
    let server = server().await;
    let (sender, events) = mpsc::unbounded_channel();
    let settings = BrokerSettings {
        server: &server,
        state,
        trust,
        limits: StoreLimits::default(),
        listen: [127, 0, 0, 1].into(),
        guard,
        now: now(),
    };
    let broker = Broker::start(settings, move |event| {
        let _ = sender.send(event);
    });
    (broker.await.unwrap(), events)
}

impl User {
    /// Waits until the broker has refused this.
    async fn refused(&mut self, attempt: Attempt, subject: &str) {
        let wanted = ConnectionEvent::Refused { attempt, subject: subject.to_owned() };
        let seen = async { while self.events.recv().await.unwrap() != wanted {} };
        assert!(tokio::time::timeout(LIMIT, seen).await.is_ok(), "not refused: {attempt:?} {subject}");
    }

    async fn publish(&self, subject: &str, body: &str) {
        self.client.publish(subject.to_owned(), body.to_owned().into()).await.unwrap();
        self.client.flush().await.unwrap();
    }

    /// Subscribes; whether the broker allows it is told later.
    async fn try_subscribe(&self, subject: &str) -> Subscriber {
        let subscriber = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.client.flush().await.unwrap();
        subscriber
    }

    /// Subscribes and waits until the broker knows it.
    async fn subscribe(&mut self, subject: &str) -> Subscriber {
        let subscriber = self.try_subscribe(subject).await;
        self.settled().await;
        subscriber
    }

    /// Returns after the broker has taken everything this user said before: a publish that must be refused is the
    /// mark behind it. (The client's `flush` only empties its own buffer; it does not wait for the broker.)
    async fn settled(&mut self) {
        self.publish("mark", "").await;
        self.refused(Attempt::Publish, "mark").await;
    }
}

async fn next(subscriber: &mut Subscriber) -> async_nats::Message {
    tokio::time::timeout(LIMIT, subscriber.next()).await.expect("nothing arrived").unwrap()
}

/// Asserts that nothing is waiting for the reader.
async fn nothing(subscriber: &mut Subscriber) {
    // What must not come cannot be awaited; what the broker had sent would be here long before.
    let waiting = tokio::time::timeout(Duration::from_millis(100), subscriber.next()).await;
    if let Ok(Some(message)) = waiting {
        panic!("{} arrived: {:?} {:?}", message.subject, message.headers, message.payload);
    }
}

async fn messages(js: &jetstream::Context, stream: &str) -> u64 {
    js.get_stream(stream).await.unwrap().cached_info().state.messages
}

/// Waits for the stream to hold this many.
async fn holds(js: &jetstream::Context, stream: &str, count: u64) {
    let since = Instant::now();
    while messages(js, stream).await != count {
        assert!(since.elapsed() < LIMIT, "{stream} has {}", messages(js, stream).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_agent_writes_its_five_subjects_and_the_hub_reads_them() {
    let hub = Hub::start().await;
    let (mut controller, _js) = hub.ready().await;
    let agent = hub.agent("dmz", "a1").await;
    for word in ["state", "result", "log", "heartbeat", "ask"] {
        let mut hears = controller.subscribe(&format!("sally.{word}.>")).await;
        let subject = format!("sally.{word}.dmz.a1");
        agent.publish(&subject, word).await;
        let message = next(&mut hears).await;
        assert_eq!((message.subject.as_str(), &message.payload[..]), (subject.as_str(), word.as_bytes()));
    }
    hub.broker.stop().await;
}

/// While a broker is dead its port is nobody's: no outgoing connection is given it, which would keep the next one away.
#[tokio::test]
async fn its_port_is_none_that_outgoing_connections_are_given() {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    let hub = Hub::start().await;
    let port = hub.broker.port();
    hub.broker.stop().await;
    // A host that gives nearly all ports to outgoing connections has none left for this.
    assert!(port < first || first <= 10_000, "{port} may be given to an outgoing connection");
}

#[tokio::test]
async fn an_agent_writes_and_reads_nothing_else() {
    let hub = Hub::start().await;
    let (mut controller, js) = hub.ready().await;
    let mut everything = controller.subscribe("sally.>").await;
    let mut agent = hub.agent("dmz", "a1").await;
    for subject in [
        // Another agent of the zone, another zone, and what is the controller's.
        "sally.result.dmz.a2",
        "sally.result.shop.a1",
        "sally.state.dmz",
        "sally.result.dmz.a1.x",
        "sally.task.dmz.a1",
        "sally.live.dmz.a1",
        "sally.live.dmz.a2",
        "sally.api.x",
        "_INBOX_ctl.x",
        "$JS.API.INFO",
        "$JS.API.STREAM.DELETE.TASKS",
        "$JS.ACK.TASKS.x",
        "$SYS.REQ.SERVER.PING",
        "other",
    ] {
        agent.publish(subject, "").await;
        agent.refused(Attempt::Publish, subject).await;
    }
    for subject in [
        ">",
        "sally.>",
        "sally.live.dmz.a2",
        "sally.live.dmz.>",
        "sally.live.dmz.*",
        "sally.live.shop.a1",
        "sally.task.dmz.a1",
        "sally.result.dmz.a1",
        "_INBOX.>",
        "_INBOX_ctl.>",
        "_INBOX_cli.>",
        "$SYS.>",
        "$JS.EVENT.>",
    ] {
        let _held = agent.try_subscribe(subject).await;
        agent.refused(Attempt::Subscribe, subject).await;
    }
    nothing(&mut everything).await;
    assert_eq!(messages(&js, TASKS).await, 0);
    hub.broker.stop().await;
}

#[tokio::test]
async fn a_dispatch_reaches_its_agent_in_the_account_of_its_zone_and_nobody_else() {
    let hub = Hub::start().await;
    let (_controller, js) = hub.ready().await;
    let mut mine = hub.agent("dmz", "a1").await;
    let mut neighbour = hub.agent("dmz", "a2").await;
    let mut abroad = hub.agent("shop", "a1").await;
    let mut live = mine.subscribe("sally.live.dmz.a1").await;
    let mut beside = neighbour.subscribe("sally.live.dmz.a2").await;
    let mut other = abroad.subscribe("sally.live.shop.a1").await;
    let mut headers = HeaderMap::new();
    headers.insert("Sally-Test", "kept");
    let ack =
        js.publish_with_headers("sally.task.dmz.a1", headers, "run".into()).await.unwrap().await.unwrap();

    let message = next(&mut live).await;
    assert_eq!((message.subject.as_str(), &message.payload[..]), ("sally.live.dmz.a1", &b"run"[..]));
    let headers = message.headers.unwrap();
    let header = |name: &str| headers.get(name).map(ToString::to_string);
    assert_eq!(header("Sally-Test").as_deref(), Some("kept"));
    assert_eq!(header("Nats-Stream").as_deref(), Some("TASKS"));
    assert_eq!(header("Nats-Subject").as_deref(), Some("sally.task.dmz.a1"));
    assert_eq!(header("Nats-Sequence"), Some(ack.sequence.to_string()));
    nothing(&mut beside).await;
    nothing(&mut other).await;
    hub.broker.stop().await;
}

#[tokio::test]
async fn a_direct_dispatch_without_its_agent_is_refused_at_once() {
    let hub = Hub::start().await;
    let (controller, _js) = hub.ready().await;
    let error = controller.client.request("sally.live.dmz.a1", "run".into()).await.unwrap_err();
    assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders);
    hub.broker.stop().await;
}

/// An agent could make the *server* write its answer where the agent may not write, by naming that subject as the
/// reply. No stream takes what an agent writes, so there is no answer to redirect.
#[tokio::test]
async fn a_reply_subject_of_an_agent_gets_no_answer_anywhere() {
    let hub = Hub::start().await;
    let (mut controller, js) = hub.ready().await;
    let mut agent = hub.agent("dmz", "a1").await;
    let mut neighbour = hub.agent("dmz", "a2").await;
    let mut abroad = hub.agent("shop", "a1").await;
    let victims =
        ["sally.task.dmz.a2", "sally.live.dmz.a2", "sally.log.dmz.a2", "_INBOX_ctl.x", "sally.live.shop.a1"];
    let mut own = agent.subscribe("sally.live.dmz.a1").await;
    let mut hearers =
        vec![neighbour.subscribe("sally.live.dmz.a2").await, abroad.subscribe("sally.live.shop.a1").await];
    for victim in victims {
        hearers.push(controller.subscribe(victim).await);
    }
    let mut heard = Vec::new();
    for word in ["result", "state", "heartbeat"] {
        heard.push(controller.subscribe(&format!("sally.{word}.dmz.a1")).await);
    }
    let mut sent = 0;
    for reply in victims.into_iter().chain(["sally.live.dmz.a1"]) {
        for word in ["state", "result", "log", "heartbeat", "ask"] {
            let subject = format!("sally.{word}.dmz.a1");
            agent.client.publish_with_reply(subject, reply, "x".into()).await.unwrap();
        }
        sent += 1;
    }
    agent.settled().await;
    for hears in &mut heard {
        for _ in 0..sent {
            assert_eq!(&next(hears).await.payload[..], b"x");
        }
    }
    for hears in &mut hearers {
        nothing(hears).await;
    }
    // Nobody listens to logs and asks here, and the server says so to the very connection that published, if that reads
    // the subject it named: once each, and no answer of a stream.
    for _ in ["log", "ask"] {
        assert_eq!(next(&mut own).await.status, Some(async_nats::StatusCode::NO_RESPONDERS));
    }
    nothing(&mut own).await;
    assert_eq!(messages(&js, TASKS).await, 0);
    hub.broker.stop().await;
}

/// Headers below that ask the broker for a trace.
const TRACES: u32 = 3;

/// The headers by which one message acts on others, or makes the server send more messages.
#[tokio::test]
async fn no_header_of_an_agent_acts_on_anything_but_its_own_message() {
    let hub = Hub::start().await;
    let (mut controller, js) = hub.ready().await;
    let mut first = hub.agent("dmz", "a1").await;
    let mut evil = hub.agent("dmz", "a2").await;
    let mut live = first.subscribe("sally.live.dmz.a1").await;
    let ack = js.publish("sally.task.dmz.a1", "true dispatch".into()).await.unwrap().await.unwrap();
    assert_eq!(&next(&mut live).await.payload[..], b"true dispatch");
    let mut tasks = controller.subscribe("sally.task.>").await;
    let mut results = controller.subscribe("sally.result.dmz.a2").await;
    let mut sent = 0;
    for (name, value) in [
        ("Nats-Rollup", "all"),
        ("Nats-Rollup", "sub"),
        ("Nats-Expected-Last-Sequence", "99"),
        ("Nats-Expected-Stream", "TASKS"),
        ("Nats-TTL", "1s"),
        ("Nats-Schedule", "@every 1s"),
        ("Nats-Schedule-Target", "sally.live.dmz.a1"),
        ("Nats-Batch-Id", "b"),
        ("Nats-Marker-Reason", "Purge"),
        ("Nats-Trace-Dest", "sally.task.dmz.a1"),
        ("Nats-Trace-Dest", "sally.live.dmz.a1"),
        ("Nats-Trace-Dest", "sally.live.shop.a1"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(name, value);
        for word in ["result", "state", "heartbeat"] {
            let subject = format!("sally.{word}.dmz.a2");
            evil.client.publish_with_headers(subject, headers.clone(), "x".into()).await.unwrap();
        }
        sent += 1;
    }
    evil.settled().await;
    // They are ordinary messages to whoever listens, but for traces: those the broker takes or drops by itself.
    evil.publish("sally.result.dmz.a2", "last").await;
    let mut heard = 0;
    while &next(&mut results).await.payload[..] != b"last" {
        heard += 1;
    }
    assert!((sent - TRACES..=sent).contains(&heard), "{heard} of {sent}");
    nothing(&mut live).await;
    nothing(&mut tasks).await;
    let stream = js.get_stream(TASKS).await.unwrap();
    let kept = stream.get_last_raw_message_by_subject("sally.task.dmz.a1").await.unwrap();
    assert_eq!((&kept.payload[..], kept.sequence), (&b"true dispatch"[..], ack.sequence));
    assert_eq!(messages(&js, TASKS).await, 1);
    hub.broker.stop().await;
}

/// A broker that an earlier version provisioned has three more streams, which took what agents write. Nobody needs them;
/// they answer nothing and stand in nobody's way.
#[tokio::test]
async fn the_streams_of_an_earlier_version_do_no_harm() {
    let hub = Hub::start().await;
    let first = hub.controller().await;
    let js = jetstream::new(first.client.clone());
    for (name, word) in [("RESULTS", "result"), ("STATES", "state"), ("HEARTBEATS", "heartbeat")] {
        let subjects = vec![format!("sally.{word}.>")];
        let old = Config {
            name: name.to_owned(),
            subjects,
            no_ack: true,
            max_bytes: 48 << 20,
            ..Config::default()
        };
        js.create_stream(old).await.unwrap();
    }
    let (mut controller, js) = hub.ready().await;
    let mut results = controller.subscribe("sally.result.>").await;
    let mut inbox = controller.subscribe("_INBOX_ctl.x").await;
    let mut agent = hub.agent("dmz", "a1").await;
    let mut live = agent.subscribe("sally.live.dmz.a1").await;
    agent.client.publish_with_reply("sally.result.dmz.a1", "_INBOX_ctl.x", "once".into()).await.unwrap();
    agent.settled().await;
    assert_eq!(&next(&mut results).await.payload[..], b"once");
    holds(&js, "RESULTS", 1).await;
    nothing(&mut results).await;
    nothing(&mut inbox).await;
    js.publish("sally.task.dmz.a1", "run".into()).await.unwrap().await.unwrap();
    assert_eq!(&next(&mut live).await.payload[..], b"run");
    assert_eq!(provision(&js, "sally").await.unwrap(), Change::None);
    hub.broker.stop().await;
}

#[tokio::test]
async fn a_caller_asks_the_controller_and_may_do_nothing_else() {
    let hub = Hub::start().await;
    let (mut controller, _js) = hub.ready().await;
    let mut asked = controller.subscribe("sally.api.>").await;
    let mut ann = hub.user(Role::Caller { name: "ann" }, Some(caller_inbox("ann"))).await;
    let answers = controller.client.clone();
    let serve = tokio::spawn(async move {
        let reply = next(&mut asked).await.reply.unwrap();
        assert!(is_caller_inbox(&reply), "{reply}");
        answers.publish(reply, "answer".into()).await.unwrap();
        answers.flush().await.unwrap();
    });
    let answer = ann.client.request("sally.api.submit", "job".into()).await.unwrap();
    assert_eq!(&answer.payload[..], b"answer");
    serve.await.unwrap();
    let others =
        ["sally.task.dmz.a1", "sally.live.dmz.a1", "sally.result.dmz.a1", "$JS.API.INFO", "_INBOX_cli.bob.x"];
    for subject in others {
        ann.publish(subject, "").await;
        ann.refused(Attempt::Publish, subject).await;
    }
    for subject in ["sally.>", "sally.api.>", "_INBOX_cli.>", "_INBOX_cli.bob.>", "_INBOX_ctl.>", ">"] {
        let _held = ann.try_subscribe(subject).await;
        ann.refused(Attempt::Subscribe, subject).await;
    }
    hub.broker.stop().await;
}

#[tokio::test]
async fn provisioning_twice_changes_nothing_and_repairs_what_differs() {
    let hub = Hub::start().await;
    let controller = hub.controller().await;
    let js = jetstream::new(controller.client.clone());
    assert_eq!(provision(&js, "sally").await.unwrap(), Change::Created);
    assert_eq!(provision(&js, "sally").await.unwrap(), Change::None);
    let mut spoiled = streams::config("sally");
    spoiled.allow_rollup = true;
    spoiled.max_age = Duration::from_secs(3600);
    js.update_stream(spoiled).await.unwrap();
    assert_eq!(provision(&js, "sally").await.unwrap(), Change::Updated);
    let config = js.get_stream(TASKS).await.unwrap().cached_info().config.clone();
    assert!(!config.allow_rollup && config.max_age == streams::config("sally").max_age);

    // Storage cannot be changed: said, not ignored.
    js.delete_stream(TASKS).await.unwrap();
    let mut other = streams::config("sally");
    (other.storage, other.max_bytes) = (StorageType::Memory, 1024);
    js.create_stream(other).await.unwrap();
    let error = provision(&js, "sally").await.unwrap_err().to_string();
    assert!(error.contains("TASKS") && error.contains("memory"), "{error}");
    hub.broker.stop().await;
}

#[tokio::test]
async fn a_killed_broker_comes_back_on_its_port_and_clients_find_it() {
    let mut hub = Hub::start().await;
    let (mut controller, js) = hub.ready().await;
    let mut agent = hub.agent("dmz", "a1").await;
    let mut live = agent.subscribe("sally.live.dmz.a1").await;
    let mut hears = controller.subscribe("sally.result.>").await;
    js.publish("sally.task.dmz.a1", "one".into()).await.unwrap().await.unwrap();
    assert_eq!(&next(&mut live).await.payload[..], b"one");

    let (port, pid) = (hub.broker.port(), hub.broker.pid().unwrap());
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    for user in [&mut controller, &mut agent] {
        for wanted in [ConnectionEvent::Disconnected, ConnectionEvent::Connected] {
            let seen = async { while user.events.recv().await.unwrap() != wanted {} };
            assert!(tokio::time::timeout(LIMIT, seen).await.is_ok(), "no {wanted:?}");
        }
    }
    assert_eq!(hub.broker.port(), port);
    assert_ne!(hub.broker.pid().unwrap(), pid);
    let told: Vec<_> = std::iter::from_fn(|| hub.events.try_recv().ok()).collect();
    let died =
        |event: &ChildEvent| matches!(event, ChildEvent::Died { how, .. } if how == "killed by SIGKILL");
    assert!(told.iter().any(died), "{told:?}");
    // Subscriptions are there again in both directions, and the streams were kept.
    controller.settled().await;
    agent.settled().await;
    js.publish("sally.task.dmz.a1", "two".into()).await.unwrap().await.unwrap();
    assert_eq!(&next(&mut live).await.payload[..], b"two");
    agent.publish("sally.result.dmz.a1", "done").await;
    assert_eq!(&next(&mut hears).await.payload[..], b"done");
    assert!(!hub.broker.stop().await, "it ends by TERM");
}

#[tokio::test]
async fn the_next_up_ends_the_broker_that_the_last_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let trust = state.trust("sally", &["dmz"], now()).unwrap();
    let (first, _events) = start(&state, &trust, None).await;
    first.stop().await;
    // As after a kill -9 of `up`: the server of that configuration runs and nobody looks after it.
    let mut left = tokio::process::Command::new(server().await.path)
        .arg("-c")
        .arg(state.nats_conf())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    leftover::record(&state.run().join("nats-server.pid"), left.id().unwrap()).unwrap();

    let (second, _events) = start(&state, &trust, None).await;
    assert!(left.try_wait().unwrap().is_some(), "the one left behind has ended");
    second.stop().await;
    let names: Vec<_> = std::fs::read_dir(state.run()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.is_empty(), "a clean stop leaves no pid or ports file: {names:?}");
}

#[tokio::test]
async fn a_guarded_broker_works_and_is_the_server_itself() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let trust = state.trust("sally", &["dmz"], now()).unwrap();
    let guard = PathBuf::from(env!("CARGO_BIN_EXE_sally"));
    let (broker, _events) = start(&state, &trust, Some(guard)).await;
    let exe = std::fs::read_link(format!("/proc/{}/exe", broker.pid().unwrap())).unwrap();
    assert_eq!(exe, std::fs::canonicalize(server().await.path).unwrap());
    assert!(!broker.stop().await);
}

/// The guard makes the kernel end the child when the parent is killed; the parent here is a shell.
#[tokio::test]
async fn a_guarded_child_ends_when_its_parent_is_killed() {
    let guard = env!("CARGO_BIN_EXE_sally");
    let script = format!("'{guard}' __child $$ /bin/sleep 600 & echo $!; wait");
    let mut parent = tokio::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = tokio::io::BufReader::new(parent.stdout.take().unwrap());
    tokio::io::AsyncBufReadExt::read_line(&mut out, &mut line).await.unwrap();
    let child: u32 = line.trim().parse().unwrap();
    let limit = Instant::now() + LIMIT;
    let name = || std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
    while name().trim() != "sleep" {
        assert!(Instant::now() < limit, "it never became the child: {:?}", name());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    parent.kill().await.unwrap();
    while leftover::is_running(child) {
        assert!(Instant::now() < limit, "it outlived its parent");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_broker_that_cannot_start_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let trust = state.trust("sally", &[], now()).unwrap();
    std::fs::remove_dir(state.jetstream()).unwrap();
    std::fs::write(state.jetstream(), "not a folder").unwrap();
    let server = server().await;
    let limits = StoreLimits::default();
    let settings = BrokerSettings {
        server: &server,
        state: &state,
        trust: &trust,
        limits,
        listen: [127, 0, 0, 1].into(),
        guard: None,
        now: now(),
    };
    let error = Broker::start(settings, |_| {}).await.err().unwrap().to_string();
    assert!(error.contains("ended at once") && error.contains("nats-server.log"), "{error}");
    assert!(error.lines().count() > 1, "the server's own words: {error}");
    assert!(!state.run().join("nats-server.pid").exists());
}

#[tokio::test]
async fn credentials_of_another_broker_are_refused_in_words() {
    let hub = Hub::start().await;
    let other = tempfile::tempdir().unwrap();
    let other = StateDir::open(other.path()).unwrap();
    let trust = other.trust("sally", &["dmz"], now()).unwrap();
    let creds = other.issue(&trust, Role::Agent { zone: "dmz", agent: "a1" }, now()).unwrap();
    let settings = ConnectSettings::new(hub.broker.url(), &creds, "test");
    let error = connect(&settings, |_| {}).await.err().unwrap();
    assert!(matches!(error, ConnectError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("have them issued again"), "{error}");
    hub.broker.stop().await;
}

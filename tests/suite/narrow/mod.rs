//! An agent's real credential allows exactly its own subjects: one test per forbidden thing, tried with a plain client of the
//! broker that keeps to no rule of ours.
//!
//! `sally up` makes the credential as it makes every agent's. Beside the one that tries stands a working agent, and the test
//! reads everything with the controller's own credential: what has an effect is seen.

mod rows;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Subscriber};
use futures_util::StreamExt as _;

use crate::harness::{LIMIT, Up, repository};
use rows::{ROWS, TRICKS, Try};

/// Whoever holds the credential of agent `evil`, and who watches.
struct Narrow {
    up: Up,
    evil: Client,
    /// What the broker told the one that tries.
    told: Arc<Mutex<Vec<String>>>,
    watcher: Client,
    /// All of Sally's subjects, from before the first try.
    seen: Subscriber,
    mark: u32,
}

async fn client(up: &Up, creds: &str, told: Arc<Mutex<Vec<String>>>, inbox: Option<&str>) -> Client {
    let config: toml::Table =
        toml::from_str(&std::fs::read_to_string(up.dir().join("serve.toml")).unwrap()).unwrap();
    let mut options = ConnectOptions::with_credentials_file(up.dir().join(creds)).await.unwrap();
    if let Some(inbox) = inbox {
        options = options.custom_inbox_prefix(inbox);
    }
    let options = options.event_callback(move |event| {
        if let Event::ServerError(error) = event {
            told.lock().unwrap().push(error.to_string().to_lowercase());
        }
        async {}
    });
    options.connect(config["url"].as_str().unwrap()).await.unwrap()
}

impl Narrow {
    async fn start() -> Narrow {
        let up = Up::start_with(1, &["--prepare", "evil"]);
        let told = Arc::<Mutex<Vec<String>>>::default();
        let evil = client(&up, "agents/evil/agent.creds", told.clone(), None).await;
        let watcher = client(&up, "creds/controller.creds", Arc::default(), Some("_INBOX_ctl")).await;
        let seen = watcher.subscribe("sally.>").await.unwrap();
        let mut narrow = Narrow { up, evil, told, watcher, seen, mark: 0 };
        // The measure: what it may say is heard, so what is not heard was not said.
        narrow.heard_until_mark(|_| ()).await;
        narrow
    }

    /// Waits until the broker has said this to the one that tries.
    async fn told(&self, what: &str) {
        let wait = async {
            while !self.told.lock().unwrap().iter().any(|said| said.contains(what)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(LIMIT, wait).await;
        assert!(waited.is_ok(), "the broker did not say {what:?}: {:?}", self.told.lock().unwrap());
    }

    /// Says something allowed behind all that was tried, and shows what comes by until then but for the other agent's own.
    async fn heard_until_mark(&mut self, mut each: impl FnMut(async_nats::Message)) {
        self.mark += 1;
        let mark = format!("mark {}", self.mark);
        let again = &mut tokio::time::interval(Duration::from_millis(50));
        let wait = async {
            loop {
                tokio::select! {
                    // The first ones may come before the watcher's subscription is known to the broker.
                    _ = again.tick() => self.evil.publish("sally.state.local.evil", mark.clone().into()).await.unwrap(),
                    message = self.seen.next() => {
                        let message = message.unwrap();
                        if message.payload == mark.as_bytes() {
                            return;
                        }
                        if !message.payload.starts_with(b"mark ") {
                            each(message);
                        }
                    }
                }
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("what it may say is heard");
    }

    /// Each try is refused by the broker, and nothing that was tried is seen anywhere.
    async fn refuses(mut self, tries: &[Try]) {
        // Asked for in vain: kept, so that nothing takes a refusal back.
        let mut held = Vec::new();
        for what in tries {
            let said = match what {
                Try::Pub(subject) => {
                    self.evil.publish(*subject, "evil".into()).await.unwrap();
                    format!("Permissions Violation for Publish to \"{subject}\"")
                }
                Try::Sub(subject) => {
                    held.push(self.evil.subscribe(*subject).await.unwrap());
                    format!("Permissions Violation for Subscription to \"{subject}\"")
                }
                Try::Queue(subject) => {
                    held.push(self.evil.queue_subscribe(*subject, "controller".into()).await.unwrap());
                    format!(
                        "Permissions Violation for Subscription to \"{subject}\" using queue \"controller\""
                    )
                }
            };
            self.told(&said.to_lowercase()).await;
        }
        self.heard_until_mark(|m| assert!(&m.payload[..] != b"evil", "{} was written", m.subject)).await;
        // The other agent works all the while, and the one that tries hears nothing of it.
        self.up.sally(&["exec", "-a", "local-1", "--", "true"]).expect(0);
        for subscriber in &mut held {
            let heard = tokio::time::timeout(Duration::from_millis(1), subscriber.next()).await;
            assert!(!matches!(heard, Ok(Some(_))), "{heard:?}");
        }
    }

    /// Publishes to its own subjects with these headers and this reply.
    async fn says(&self, headers: &[(&str, &str)], reply: Option<&str>) {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        for word in ["state", "result", "log", "heartbeat", "ask"] {
            let subject = format!("sally.{word}.local.evil");
            let (headers, body) = (map.clone(), "evil".into());
            let said = match reply {
                Some(reply) => {
                    self.evil.publish_with_reply_and_headers(subject, reply.to_owned(), headers, body).await
                }
                None => self.evil.publish_with_headers(subject, headers, body).await,
            };
            said.unwrap();
        }
    }

    /// Nothing of what it said comes by on any subject but its own five.
    async fn only_on_its_own(&mut self) {
        self.heard_until_mark(|m| {
            let own = m.subject.ends_with(".local.evil")
                && !m.subject.contains(".task.")
                && !m.subject.contains(".live.");
            let others = m.subject.ends_with(".local.local-1") || m.subject.starts_with("sally.api.");
            let is_its = &m.payload[..] == b"evil" || m.subject.contains("evil");
            assert!(own || (others && !is_its), "{}: {:?}", m.subject, m.payload);
        })
        .await;
    }

    async fn stream(&self) -> async_nats::jetstream::stream::Stream {
        async_nats::jetstream::new(self.watcher.clone()).get_stream("TASKS").await.unwrap()
    }
}

fn row(test: &str) -> &'static [Try] {
    ROWS.iter().find(|row| row.test == test).unwrap().tries
}

macro_rules! refused {
    ($($test:ident)*) => {
        $(#[tokio::test] async fn $test() { Narrow::start().await.refuses(row(stringify!($test))).await; })*

        /// Those of the list, in its order.
        const REFUSED: &[&str] = &[$(stringify!($test)),*];
    };
}

refused! {
    another_agents_tasks
    another_agents_commands
    another_agents_commands_in_a_queue_group
    another_agents_results
    another_agents_output
    another_agents_news_and_questions
    heartbeats
    everything
    publishing_as_another_agent
    publishing_in_another_zone
    commands
    the_controllers_api
    making_streams
    removing_streams
    looking_at_streams
    consumers
    acknowledging
    inboxes_of_others
    the_broker_itself
    enrolments
}

/// Subjects on which somebody else would act.
const VICTIMS: [&str; 5] = [
    "sally.task.local.local-1",
    "sally.live.local.local-1",
    "sally.result.local.local-1",
    "_INBOX_ctl.victim",
    "_INBOX_cli.root.victim",
];

#[tokio::test]
async fn a_reply_subject() {
    let mut narrow = Narrow::start().await;
    let mut inbox = narrow.watcher.subscribe("_INBOX_ctl.victim").await.unwrap();
    let before = narrow.stream().await.cached_info().state.messages;
    for victim in VICTIMS {
        narrow.says(&[], Some(victim)).await;
    }
    narrow.only_on_its_own().await;
    let heard = tokio::time::timeout(Duration::from_millis(1), inbox.next()).await;
    assert!(heard.is_err(), "{heard:?}");
    assert_eq!(narrow.stream().await.cached_info().state.messages, before);
}

#[tokio::test]
async fn a_deliver_subject() {
    let mut narrow = Narrow::start().await;
    for victim in VICTIMS {
        let config = format!(
            r#"{{"stream_name":"TASKS","config":{{"deliver_subject":"{victim}","deliver_policy":"all","ack_policy":"none"}}}}"#
        );
        narrow.evil.publish("$JS.API.CONSUMER.CREATE.TASKS", config.clone().into()).await.unwrap();
        // The same with the API as the reply of something allowed.
        narrow
            .evil
            .publish_with_reply("sally.ask.local.evil", "$JS.API.CONSUMER.CREATE.TASKS", config.into())
            .await
            .unwrap();
    }
    narrow.told("permissions violation for publish to \"$js.api.consumer.create.tasks\"").await;
    narrow.heard_until_mark(|_| ()).await;
    let mut stream = narrow.stream().await;
    assert_eq!(stream.info().await.unwrap().state.consumer_count, 0);
}

#[tokio::test]
async fn a_schedule() {
    let mut narrow = Narrow::start().await;
    let before = narrow.stream().await.cached_info().state.messages;
    for victim in VICTIMS {
        narrow.says(&[("Nats-Schedule", "@every 1s"), ("Nats-Schedule-Target", victim)], None).await;
        narrow
            .says(&[("Nats-Schedule", "@at 2020-01-01T00:00:00Z"), ("Nats-Schedule-Target", victim)], None)
            .await;
        narrow
            .says(
                &[
                    ("Nats-Schedule", "@every 1s"),
                    ("Nats-Schedule-Target", victim),
                    ("Nats-Schedule-TTL", "5m"),
                ],
                Some(victim),
            )
            .await;
    }
    narrow.only_on_its_own().await;
    // A schedule would be a message of a stream that waits. There is no other stream than that of tasks.
    assert_eq!(narrow.stream().await.cached_info().state.messages, before);
    let names = async_nats::jetstream::new(narrow.watcher.clone()).stream_names().count().await;
    assert_eq!(names, 1);
}

#[tokio::test]
async fn a_rollup() {
    let mut narrow = Narrow::start().await;
    narrow.up.sally(&["exec", "-a", "local-1", "--", "true"]).expect(0);
    let before = narrow.stream().await.cached_info().state.messages;
    assert!(before > 0, "a dispatch is there to be lost");
    for (name, value) in [
        ("Nats-Rollup", "all"),
        ("Nats-Rollup", "sub"),
        ("Nats-Marker-Reason", "Purge"),
        ("KV-Operation", "PURGE"),
        ("Nats-TTL", "1s"),
        ("Nats-Expected-Stream", "TASKS"),
        ("Nats-Expected-Last-Sequence", "1"),
        ("Nats-Batch-Id", "b"),
    ] {
        narrow.says(&[(name, value)], None).await;
    }
    narrow.only_on_its_own().await;
    assert_eq!(narrow.stream().await.cached_info().state.messages, before);
}

#[tokio::test]
async fn a_stolen_message_id() {
    let mut narrow = Narrow::start().await;
    narrow.says(&[("Nats-Msg-Id", "stolen")], None).await;
    narrow.only_on_its_own().await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "stolen");
    let js = async_nats::jetstream::new(narrow.watcher.clone());
    let stored = js.publish_with_headers("sally.task.local.local-1", headers.clone(), "one".into());
    assert!(!stored.await.unwrap().await.unwrap().duplicate, "the id is free");
    // The measure: the stream does know an id that was used.
    let again = js.publish_with_headers("sally.task.local.local-1", headers, "two".into());
    assert!(again.await.unwrap().await.unwrap().duplicate, "an id counts while it is remembered");
}

#[tokio::test]
async fn a_trace() {
    let mut narrow = Narrow::start().await;
    let before = narrow.stream().await.cached_info().state.messages;
    for victim in VICTIMS {
        narrow.says(&[("Nats-Trace-Dest", victim)], None).await;
        narrow.says(&[("Nats-Trace-Dest", victim), ("Nats-Trace-Only", "true")], None).await;
        narrow
            .says(
                &[
                    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                    ("Nats-Trace-Dest", victim),
                ],
                None,
            )
            .await;
    }
    narrow.only_on_its_own().await;
    assert_eq!(narrow.stream().await.cached_info().state.messages, before);
}

#[tokio::test]
async fn a_request_of_its_own() {
    let mut narrow = Narrow::start().await;
    let mut inbox = narrow.evil.subscribe(narrow.evil.new_inbox()).await.unwrap();
    narrow.told("permissions violation for subscription to \"_inbox.").await;
    narrow.says(&[], Some(&narrow.evil.new_inbox())).await;
    narrow.only_on_its_own().await;
    let heard = tokio::time::timeout(Duration::from_millis(1), inbox.next()).await;
    assert!(heard.is_err(), "{heard:?}");
}

#[tokio::test]
async fn many_subscriptions() {
    let narrow = Narrow::start().await;
    let mut held = Vec::new();
    for _ in 0..9 {
        held.push(narrow.evil.subscribe("sally.live.local.evil").await.unwrap());
    }
    narrow.told("maximum subscriptions exceeded").await;
}

const PAGE: &str = "docs/permissions.md";
const BEGIN: &str = "<!-- forbidden: made by tests/suite/narrow with UPDATE_DOCS=1 -->\n";
const END: &str = "<!-- end -->\n";

fn table() -> String {
    let mut text = String::from("| an agent cannot | refused by the broker | test |\n| --- | --- | --- |\n");
    for row in ROWS {
        let tries = row.tries.iter().map(|what| match what {
            Try::Pub(subject) => format!("publish `{subject}`"),
            Try::Sub(subject) => format!("subscribe `{subject}`"),
            Try::Queue(subject) => format!("subscribe `{subject}` in a queue group"),
        });
        let tries: Vec<String> = tries.collect();
        text.push_str(&format!("| {} | {} | `{}` |\n", row.what, tries.join(", "), row.test));
    }
    text.push_str("\n| an agent may try, in vain | why nothing comes of it | test |\n| --- | --- | --- |\n");
    for trick in TRICKS {
        text.push_str(&format!("| {} | {} | `{}` |\n", trick.what, trick.because, trick.test));
    }
    text
}

/// The page's table is this list. `UPDATE_DOCS=1` writes it.
#[test]
fn the_page_has_the_table() {
    let path = repository().join(PAGE);
    let old = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = old.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    let new = format!("{head}{BEGIN}{}{END}{tail}", table());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return std::fs::write(&path, new).unwrap();
    }
    assert!(old == new, "{PAGE}: run this test again with UPDATE_DOCS=1");
}

/// No row without a test, and no test without a row.
#[test]
fn each_row_is_tried() {
    let rows: Vec<&str> = ROWS.iter().map(|row| row.test).collect();
    assert_eq!(rows, REFUSED);
    let source = std::fs::read_to_string(repository().join("tests/suite/narrow/mod.rs")).unwrap();
    for trick in TRICKS {
        assert!(source.contains(&format!("#[tokio::test]\nasync fn {}()", trick.test)), "{}", trick.test);
    }
}

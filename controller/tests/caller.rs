//! The caller's side against a real broker and a controller that is played here: what is believed, what is repeated,
//! what the command line prints and how it ends. Needs a server: `make nats-server`, or `SALLY_NATS_SERVER`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is the test's failure")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, SystemTime};

use async_nats::{Client as Nats, HeaderMap, Message};
use futures_util::StreamExt;
use sally::broker::config::StoreLimits;
use sally::broker::find::{self, Search};
use sally::broker::process::{Broker, BrokerSettings};
use sally::broker::state::StateDir;
use sally::client::{Client, ClientError};
use sally::context::{Context, ContextFile, write_context};
use sally_common::id::{Digest, JobId, RunId};
use sally_common::key::SigningKey;
use sally_common::name::{Agent, User, Zone};
use sally_common::nats::accounts::{CONTROLLER_INBOX, Role, is_caller_inbox};
use sally_common::nats::connect::{ConnectSettings, connect};
use sally_common::wire::api::*;
use sally_common::wire::order::Order;
use sally_common::wire::record::*;
use sally_common::wire::{self, Envelope, Kind};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Generous: a condition is awaited, this only bounds a failure.
const LIMIT: Duration = Duration::from_secs(60);

struct House {
    _controller: JoinSet<()>,
    context: PathBuf,
    _broker: Broker,
    _dir: tempfile::TempDir,
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

impl House {
    async fn start(with_controller: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let trust = state.trust("sally", &["local"]).unwrap();
        let server = match find::find(&Search::from_process(None)).await {
            Ok(server) => server,
            Err(error) => panic!("these tests drive a real broker: {error}"),
        };
        let settings = BrokerSettings {
            server: &server,
            state: &state,
            trust: &trust,
            limits: StoreLimits::default(),
            guard: None,
            listen: [127, 0, 0, 1].into(),
            now: now(),
        };
        let broker = Broker::start(settings, |_| ()).await.unwrap();
        let (controller_key, caller_key) = (SigningKey::generate(), SigningKey::generate());
        let seed = dir.path().join("caller.seed");
        std::fs::write(&seed, caller_key.seed()).unwrap();
        let context = dir.path().join("context.toml");
        let file = ContextFile {
            version: 1,
            url: broker.url().to_owned(),
            creds: state.issue(&trust, Role::Caller { name: "ann" }, now()).unwrap(),
            signing_key: "caller.seed".into(),
            user: User::new("ann").unwrap(),
            prefix: None,
            controllers: vec![controller_key.public().clone()],
            inbox: None,
            ca_file: None,
            tls_first: false,
        };
        write_context(&context, &file).unwrap();
        let mut tasks = JoinSet::new();
        if with_controller {
            let creds = state.issue(&trust, Role::Controller, now()).unwrap();
            let mut settings = ConnectSettings::new(broker.url(), creds, "played");
            settings.inbox_prefix = Some(CONTROLLER_INBOX.to_owned());
            let nats = connect(&settings, |_| ()).await.unwrap();
            let mut requests = nats.subscribe("sally.api.*").await.unwrap();
            nats.flush().await.unwrap();
            let mut played =
                Played { nats, key: controller_key, blobs: BTreeMap::new(), jobs: Vec::new(), behind: None };
            tasks.spawn(async move {
                while let Some(request) = requests.next().await {
                    played.answer(request).await;
                }
            });
        }
        Self { _controller: tasks, context, _broker: broker, _dir: dir }
    }

    async fn client(&self) -> Client {
        Client::connect(&Context::read(&self.context).unwrap()).await.unwrap()
    }

    async fn sally(&self, line: &str) -> Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_sally"));
        command.arg("--context").arg(&self.context).args(line.split(' ')).stdin(std::process::Stdio::null());
        command.kill_on_drop(true);
        tokio::time::timeout(LIMIT, command.output())
            .await
            .unwrap_or_else(|_| panic!("{line} hangs"))
            .unwrap()
    }
}

struct Played {
    nats: Nats,
    key: SigningKey,
    blobs: BTreeMap<Digest, Vec<u8>>,
    jobs: Vec<(JobRecord, Vec<RunRecord>, Order)>,
    /// Bytes behind the next reply.
    behind: Option<Vec<u8>>,
}

impl Played {
    async fn answer(&mut self, message: Message) {
        let reply = message.reply.clone().unwrap();
        assert!(is_caller_inbox(&reply), "{reply}");
        wire::verify(Kind::Request, message.headers.as_ref(), &message.payload, 1 << 20, |_| true).unwrap();
        let feed = message.payload.iter().position(|b| *b == b'\n');
        let (head, chunk) = match feed {
            Some(at) => (&message.payload[..at], &message.payload[at + 1..]),
            None => (&message.payload[..], &[][..]),
        };
        let request: Request = wire::read(head).unwrap();
        assert_eq!(message.subject.as_str(), format!("sally.api.{}", request.call.verb()));
        let hostile = matches!(request.call, Call::Hello);
        let outcome = match self.act(request.call, chunk).await {
            Ok(value) => ReplyOutcome::Ok(serde_json::value::to_raw_value(&value).unwrap()),
            Err(error) => ReplyOutcome::Error(error),
        };
        let reply_body =
            Reply { v: 1, nonce: request.nonce, outcome, payload: self.behind.as_deref().map(Digest::of) };
        if hostile {
            // Somebody on the broker is faster than the controller.
            let forged = Envelope::seal(Kind::Reply, &SigningKey::generate(), &reply_body);
            self.nats
                .publish_with_headers(reply.clone(), forged.headers(), forged.body.into())
                .await
                .unwrap();
        }
        let sealed = Envelope::seal(Kind::Reply, &self.key, &reply_body);
        let mut body = sealed.body.clone();
        if let Some(bytes) = self.behind.take() {
            body.push(b'\n');
            body.extend(bytes);
        }
        let parts: Vec<&[u8]> = body.chunks(body.len() / 2 + 1).collect();
        for (index, part) in parts.iter().enumerate() {
            let mut headers = if index == 0 { sealed.headers() } else { HeaderMap::new() };
            headers.insert(HEADER_PART, format!("{}/{}", index + 1, parts.len()));
            self.nats.publish_with_headers(reply.clone(), headers, part.to_vec().into()).await.unwrap();
        }
    }

    async fn act(&mut self, call: Call, chunk: &[u8]) -> Result<Value, ApiError> {
        let fail = |code, message: &str| ApiError { code, message: message.into(), hint: None };
        Ok(match call {
            Call::Hello => json!({"version": "0", "broker": "b", "caller": "ann"}),
            Call::Blob { digest, offset, total } => {
                let blob = self.blobs.entry(digest).or_default();
                // The first chunk is stored in part only, as after a crash.
                let kept = if blob.is_empty() { chunk.len().min(1000) } else { chunk.len() };
                assert_eq!(offset, blob.len() as u64);
                blob.extend_from_slice(&chunk[..kept]);
                let complete = blob.len() as u64 == total && Digest::of(blob) == digest;
                json!({"bytes": blob.len(), "complete": complete})
            }
            Call::Submit(submit) => {
                let order: Order = serde_json::from_str(&submit.order).unwrap();
                assert!(submit.signatures[0].key.verify(
                    Kind::Order,
                    submit.order.as_bytes(),
                    &submit.signatures[0].signature
                ));
                if order.targets.agents.iter().any(|a| a == "nobody") {
                    return Err(fail(ErrorCode::NoTarget, "no agent is named nobody"));
                }
                self.submit(order, submit).await
            }
            Call::Job { .. } => {
                json!(self.jobs.last().ok_or(fail(ErrorCode::NotFound, "there is no job"))?.0)
            }
            Call::Watch { job, .. } => json!(self.jobs.iter().find(|j| j.0.id == job).unwrap().0),
            Call::Runs { job, states, .. } => {
                let mut runs = self.jobs.iter().find(|j| j.0.id == job).unwrap().1.clone();
                runs.retain(|r| states.is_empty() || states.contains(&r.state));
                json!({"runs": runs, "next": null})
            }
            Call::Log { run, stream, offset } => {
                let (_, runs, _) = self.jobs.iter().find(|j| &j.0.id == run.job()).unwrap();
                let run = runs.iter().find(|r| r.run == run).unwrap();
                let bytes = if stream == "stdout" { run.stdout.as_bytes() } else { run.stderr.as_bytes() };
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                // In pieces of three bytes, so that reading on is seen.
                self.behind = Some(bytes[from..(from + 3).min(bytes.len())].to_vec());
                json!({"offset": from, "stored": bytes.len(), "ended": true, "dropped": 0})
            }
            Call::Cancel { .. } => json!({"job": self.jobs.last().unwrap().0, "runs": 0}),
            Call::Agents => json!({"agents": []}),
            Call::Resolve { .. } => {
                json!({"targets": [{"zone": "local", "agent": "local-1", "online": true}]})
            }
            Call::Jobs { .. } => json!({"jobs": [], "more": false}),
            other => return Err(fail(ErrorCode::Usage, &format!("{} is not played here", other.verb()))),
        })
    }

    /// The first argument says how the runs go.
    async fn submit(&mut self, order: Order, submit: Submit) -> Value {
        let id = JobId::generate(now() as i64 * 1000);
        let mode = order.task.args.first().cloned().unwrap_or_default();
        let agents = if order.targets.all { vec!["local-1", "local-2"] } else { vec!["local-1"] };
        let mut runs: Vec<RunRecord> = Vec::new();
        for (index, agent) in agents.iter().enumerate() {
            runs.push(ended(id.run(index as u32), agent, &mode));
        }
        let counts = runs.iter().fold(BTreeMap::new(), |mut all, r| {
            *all.entry(r.state).or_insert(0u64) += 1;
            all
        });
        let mut job = JobRecord {
            id: id.clone(),
            state: JobState::Queued,
            created_at: "2026-11-21T07:00:00.000Z".into(),
            by: "ann".into(),
            request_id: order.request_id.clone(),
            retry_of: None,
            title: order.task.title.clone().unwrap_or_default(),
            counts: BTreeMap::from([(RunState::Pending, runs.len() as u64)]),
        };
        let targets: Vec<Value> =
            agents.iter().map(|a| json!({"zone": "local", "agent": a, "online": true})).collect();
        let submitted = json!({"job": job, "created": true, "targets": targets});
        if mode != "never" {
            job.state = JobState::of_counts(&counts);
            job.counts = counts;
        }
        if let Some(inbox) = submit.watch.filter(|_| mode != "silent" && mode != "never") {
            for run in &runs {
                let stdout = run.stdout.as_bytes();
                // The middle is missing: the caller must fetch it.
                self.output(&inbox, run, 0, &stdout[..2.min(stdout.len())]).await;
                self.output(&inbox, run, 4, stdout.get(4..).unwrap_or_default()).await;
                let (mut bare, whole) = (run.clone(), mode != "bare");
                if !whole {
                    (bare.stdout, bare.result) = (String::new(), None);
                }
                let change = Change::Run { run: Box::new(bare), whole, ended: None };
                self.event(&inbox, Event { v: 1, job: id.clone(), change }, &self.key).await;
            }
            let forged =
                Change::Ended { job: Box::new(JobRecord { state: JobState::Cancelled, ..job.clone() }) };
            self.event(&inbox, Event { v: 1, job: id.clone(), change: forged }, &SigningKey::generate())
                .await;
            let change = Change::Ended { job: Box::new(job.clone()) };
            self.event(&inbox, Event { v: 1, job: id, change }, &self.key).await;
        }
        self.jobs.push((job, runs, order));
        submitted
    }

    async fn output(&self, inbox: &str, run: &RunRecord, offset: u64, bytes: &[u8]) {
        let (run, agent, job) = (run.run.clone(), run.agent.clone(), run.run.job().clone());
        let change = Change::Output { run, agent, stream: "stdout".into(), offset };
        let body = wire::join_head(&Event { v: 1, job, change }, bytes);
        self.nats.publish(inbox.to_owned(), body.into()).await.unwrap();
    }

    async fn event(&self, inbox: &str, event: Event, key: &SigningKey) {
        let sealed = Envelope::seal(Kind::Event, key, &event);
        self.nats.publish_with_headers(inbox.to_owned(), sealed.headers(), sealed.body.into()).await.unwrap();
    }
}

fn ended(run: RunId, agent: &str, mode: &str) -> RunRecord {
    let failed = mode == "fail" || (mode == "mixed" && agent == "local-2");
    let record = json!({
        "run": run, "agent": Agent::new(agent).unwrap(), "zone": Zone::new("local").unwrap(),
        "state": if failed { "failed" } else { "succeeded" }, "final": true, "attempt": 1,
        "exit_code": if failed { 7 } else { 0 }, "result": {"a": 1}, "result_state": "valid",
        "artifacts": [], "stdout": "one\u{1b}[2J\ntwo\n", "stderr": "",
        "stdout_encoding": "utf-8", "stderr_encoding": "utf-8",
        "stdout_truncated_bytes": 0, "stderr_truncated_bytes": 0,
        "queued_at": "2026-11-21T07:00:00.000Z", "started_at": "2026-11-21T07:00:00.000Z",
    });
    // Over text: a raw value is read from text only.
    serde_json::from_str(&record.to_string()).unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

const OUTPUT: &str = "one\u{1b}[2J\ntwo\n";

#[tokio::test]
async fn only_the_pinned_controller_is_believed() {
    let house = House::start(true).await;
    let hello: Hello = house.client().await.call(Call::Hello).await.unwrap();
    assert_eq!(hello.caller, "ann");

    let mut stranger = Context::read(&house.context).unwrap();
    stranger.controllers = vec![SigningKey::generate().public().clone()];
    let client = Client::connect(&stranger).await.unwrap();
    let short = Duration::from_millis(500);
    let answer: Result<Hello, ClientError> = client.call_with(Call::Hello, None, short).await;
    assert!(matches!(answer, Err(ClientError::NotTrusted { .. })), "{answer:?}");
}

#[tokio::test]
async fn an_upload_goes_on_where_it_stopped() {
    let house = House::start(true).await;
    let bytes: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(house.client().await.upload(&bytes).await.unwrap(), Digest::of(&bytes));
}

#[tokio::test]
async fn one_target_goes_through_byte_by_byte() {
    let house = House::start(true).await;
    for mode in ["fine", "bare"] {
        let (code, stdout, stderr) = said(&house.sally(&format!("exec -a local-1 -- {mode}")).await);
        assert_eq!((code, stdout.as_str()), (Some(0), OUTPUT), "{mode}: {stderr}");
        assert!(stderr.starts_with(&format!("{mode} → 1 agent in 1 zone   job ")), "{stderr}");
        assert!(stderr.contains("✓ local-1 succeeded   {\"a\":1}"), "{stderr}");
    }
    let (code, _, stderr) = said(&house.sally("exec -a local-1 -- fail").await);
    assert_eq!(code, Some(3), "{stderr}");
}

#[tokio::test]
async fn several_targets_are_folded_and_each_format_has_the_record() {
    let house = House::start(true).await;
    let (code, stdout, _) = said(&house.sally("exec --all -- fine").await);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("✓ local-[1-2] (succeeded)"), "{stdout}");

    let (code, stdout, stderr) = said(&house.sally("exec --all -o json -- mixed").await);
    assert_eq!(code, Some(3), "{stderr}");
    let whole: JobWithRuns = serde_json::from_str(&stdout).unwrap();
    assert_eq!(whole.runs.len(), 2);
    assert_eq!(whole.runs[0].stdout, OUTPUT);

    let (_, lines, _) = said(&house.sally("exec --all -o jsonl -- bare").await);
    let agents: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(agents.len(), 2);
    assert_eq!(agents[1]["stdout"], OUTPUT, "a record that came without its output was fetched");

    let (_, stdout, _) = said(&house.sally("exec --all --stream -- fine").await);
    assert!(stdout.contains("local-2 | two\n"), "{stdout}");
}

#[tokio::test]
async fn folders_logs_results_and_ids() {
    let house = House::start(true).await;
    let folder = tempfile::tempdir().unwrap();
    let (code, _, stderr) =
        said(&house.sally(&format!("exec --all --output-dir {} -- fine", folder.path().display())).await);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(std::fs::read_to_string(folder.path().join("local-2.out")).unwrap(), OUTPUT);
    let record: RunRecord =
        serde_json::from_slice(&std::fs::read(folder.path().join("local-1.json")).unwrap()).unwrap();
    assert_eq!(record.agent.as_str(), "local-1");

    let (_, stdout, _) = said(&house.sally("job logs latest --raw -a local-1").await);
    assert_eq!(stdout, OUTPUT);
    let (_, stdout, _) = said(&house.sally("job logs latest -a local-1 --tail 1").await);
    assert_eq!(stdout, "two\n");
    let (_, stdout, _) = said(&house.sally("job result latest").await);
    assert_eq!(stdout.lines().next(), Some(r#"{"agent":"local-1","result_state":"valid","result":{"a":1}}"#));
    let (_, stdout, _) = said(&house.sally("job result latest -a local-1").await);
    assert_eq!(stdout, "{\"a\":1}\n");
    let (code, _, stderr) = said(&house.sally("job cancel latest").await);
    assert!(code == Some(0) && stderr.contains("had ended already"), "{stderr}");

    let (code, id, _) = said(&house.sally("exec --all --detach -- never").await);
    assert!(code == Some(0) && id.trim().parse::<JobId>().is_ok(), "{id}");
}

#[tokio::test]
async fn ends_that_sent_no_event_are_learned_and_waiting_has_an_end() {
    let house = House::start(true).await;
    let (code, stdout, _) = said(&house.sally("exec -a local-1 -- silent").await);
    assert_eq!((code, stdout.as_str()), (Some(0), OUTPUT));
    let (code, _, stderr) = said(&house.sally("exec -a local-1 --wait 300ms -- never").await);
    assert!(code == Some(124) && stderr.contains("sally job watch"), "{stderr}");
}

#[tokio::test]
async fn errors_have_exit_codes_and_words() {
    let house = House::start(true).await;
    let (code, _, stderr) = said(&house.sally("exec -a nobody -- true").await);
    assert_eq!((code, stderr.as_str()), (Some(4), "sally: no agent is named nobody\n"));
    let (code, _, stderr) = said(&house.sally("job show latest -o json").await);
    let error: Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!((code, &error["code"]), (Some(2), &json!("usage")), "{stderr}");

    let alone = House::start(false).await;
    let (code, _, stderr) = said(&alone.sally("exec -a x -- true").await);
    assert!(code == Some(7) && stderr.contains("no controller answers"), "{stderr}");

    let mut gone = Context::read(&alone.context).unwrap().to_file();
    gone.url = "nats://127.0.0.1:1".into();
    write_context(&alone.context, &gone).unwrap();
    let (code, _, stderr) = said(&alone.sally("job ls").await);
    assert!(
        code == Some(7) && stderr.contains("cannot reach the broker") && stderr.contains("sally up"),
        "{stderr}"
    );
}

#[tokio::test]
async fn ctrl_c_detaches_and_a_closed_pipe_ends_quietly() {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
    let house = House::start(true).await;
    let start = |line: &str| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_sally"));
        command.arg("--context").arg(&house.context).args(line.split(' ')).stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).kill_on_drop(true);
        command.spawn().unwrap()
    };
    let mut child = start("exec -a local-1 -- never");
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).await.unwrap();
    assert!(line.contains("1 agent in 1 zone"), "{line}");
    let pid = nix::unistd::Pid::from_raw(child.id().unwrap() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let mut rest = String::new();
    tokio::time::timeout(LIMIT, stderr.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert!(rest.contains("detached") && rest.contains("sally job watch"), "{rest}");
    assert_eq!(child.wait().await.unwrap().code(), Some(130));

    let mut child = start("exec -a local-1 -- fine");
    drop(child.stdout.take());
    let mut said = String::new();
    let reading = child.stderr.take().unwrap();
    tokio::time::timeout(LIMIT, BufReader::new(reading).read_to_string(&mut said)).await.unwrap().unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(141), "{said}");
    assert!(!said.contains("panicked") && !said.contains("sally:"), "{said}");
}

//! The caller's side against a real broker and a controller that is played here: what is believed, what is repeated,
//! what the command line prints and how it ends. Needs a server: `make nats-server`, or `SALLY_NATS_SERVER`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is the test's failure")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::sync::{Arc, Mutex};
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
use sally_common::limit;
use sally_common::name::{Agent, User, Zone};
use sally_common::nats::accounts::{CONTROLLER_INBOX, Role, Trust, is_caller_inbox};
use sally_common::nats::connect::{ConnectSettings, connect};
use sally_common::secret::CurveKey;
use sally_common::wire::api::*;
use sally_common::wire::command::Lane;
use sally_common::wire::order::Order;
use sally_common::wire::record::*;
use sally_common::wire::{self, Envelope, Kind};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Generous: a condition is awaited, this only bounds a failure.
const LIMIT: Duration = Duration::from_secs(60);

struct House {
    controller: JoinSet<()>,
    key: SigningKey,
    state: StateDir,
    trust: Trust,
    context: PathBuf,
    submits: Submits,
    curve: Arc<CurveKey>,
    broker: Broker,
    _dir: tempfile::TempDir,
}

/// What was submitted, and the orders of it.
type Submits = Arc<Mutex<Vec<(Submit, Order)>>>;

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

impl House {
    async fn start(with_controller: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let trust = state.trust("sally", &["local"], 1).unwrap();
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
        let mut house = Self {
            controller: JoinSet::new(),
            key: controller_key,
            state,
            trust,
            context,
            submits: Submits::default(),
            curve: Arc::new(CurveKey::generate()),
            broker,
            _dir: dir,
        };
        if with_controller {
            house.serve().await;
        }
        house
    }

    /// Starts the played controller.
    async fn serve(&mut self) {
        let creds = self.state.issue(&self.trust, Role::Controller, now()).unwrap();
        let mut settings = ConnectSettings::new(self.broker.url(), creds, "played");
        settings.inbox_prefix = Some(CONTROLLER_INBOX.to_owned());
        let nats = connect(&settings, |_| ()).await.unwrap();
        let mut requests = nats.subscribe("sally.api.*").await.unwrap();
        nats.flush().await.unwrap();
        let (key, submits, curve) = (self.key.clone(), self.submits.clone(), self.curve.clone());
        let (blobs, jobs) = (BTreeMap::new(), Vec::new());
        let mut played = Played { nats, key, blobs, jobs, behind: None, submits, curve };
        self.controller.spawn(async move {
            while let Some(request) = requests.next().await {
                played.answer(request).await;
            }
        });
    }

    fn last_submit(&self) -> (Submit, Order) {
        self.submits.lock().unwrap().last().unwrap().clone()
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
    submits: Submits,
    /// Of local-1; local-2 has said none.
    curve: Arc<CurveKey>,
}

fn agent_key() -> SigningKey {
    SigningKey::from_secret([7; 32])
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
            Call::Agents => json!({"agents": [{
                "agent": "local-1", "zone": "local", "state": "online", "last_seen_at": null,
                "last_seen_s": 1, "slots_used": 0, "slots_total": 4, "version": "0", "labels": {}, "key": "",
                "incarnation": "", "hostname": "", "os": "", "kernel": "", "arch": "", "sandbox_mode": "root",
                "profiles": [], "spool_results": 0, "refused": {}, "last_error": null, "waiting": 3,
                "draining": true,
            }]}),
            Call::Resolve { targets } => {
                let key = agent_key().public().clone();
                let mut found = vec![json!({"zone": "local", "agent": "local-1", "online": true,
                    "agent_key": key, "curve_key": self.curve.public()})];
                if targets.all {
                    found.push(
                        json!({"zone": "local", "agent": "local-2", "online": false, "agent_key": key}),
                    );
                }
                json!({"targets": found})
            }
            Call::Order { job } => {
                let (_, _, order) = self.jobs.iter().find(|j| j.0.id == job).unwrap();
                let order = serde_json::to_string(order).unwrap();
                json!({"order": order, "signatures": [], "offline": "skip", "priority": 7, "lane": "direct"})
            }
            Call::CancelRequest { request_id, hard } => {
                let found = self.jobs.iter().find(|j| j.0.request_id == request_id).map(|j| &j.0);
                json!({"job": found, "runs": u64::from(hard)})
            }
            Call::Waiting { from, limit, .. } => {
                // Three in pages of at most two.
                let runs = [0, 1, 2].map(|n| ended(JobId::generate(1).run(n), "local-1", "fine"));
                let to = (from + limit.min(2)).min(3);
                let next = (to < 3).then_some(to);
                json!({"runs": runs[from as usize..to as usize], "next": next})
            }
            Call::Purge { .. } => json!({"runs": 3, "agents": [target("local-1")]}),
            Call::Forget { agent, .. } => json!({"runs": 1, "agents": [target(agent.as_str())]}),
            // Tried with a real controller: tests/suite/enrolment.rs.
            Call::EnrolToken { .. } => {
                json!({"id": "0".repeat(32), "jwt": "a.b.c", "expires_ms": 4_000_000_000_000_i64})
            }
            Call::Revoke { zone, agent } => json!({"zone": zone, "agent": agent, "runs": 2}),
            Call::Drain { drain, .. } => {
                json!({"agents": [target(if drain { "local-1" } else { "local-2" })]})
            }
            Call::Ping { wait_ms, .. } => {
                let mut pings =
                    vec![json!({"zone": "local", "agent": "local-1", "rtt_ms": 1.5, "skew_ms": -3})];
                // The patient hear of all who answer.
                if wait_ms < 1_000 {
                    let silent =
                        json!({"zone": "local", "agent": "local-2", "rtt_ms": null, "skew_ms": null});
                    pings.push(silent);
                }
                json!({"agents": pings})
            }
            Call::Jobs { .. } => json!({"jobs": [], "more": false}),
        })
    }

    /// The first argument says how the runs go.
    async fn submit(&mut self, order: Order, submit: Submit) -> Value {
        let id = JobId::generate(now() as i64 * 1000);
        let mode = order.task.args.first().cloned().unwrap_or_default();
        self.submits.lock().unwrap().push((submit.clone(), order.clone()));
        let named: Vec<&str> =
            order.targets.agents.iter().filter_map(|a| Some(a.split_once('/')?.1)).collect();
        let agents = match order.targets.all {
            true => vec!["local-1", "local-2"],
            false if named.is_empty() => vec!["local-1"],
            false => named,
        };
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
            retry_of: submit.retry_of.clone(),
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

fn target(agent: &str) -> Value {
    json!({"zone": "local", "agent": agent, "online": true})
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
    // It may be starting: some seconds are waited, and that is said.
    let (code, _, stderr) = said(&alone.sally("exec -a x -- true").await);
    assert!(code == Some(7) && stderr.starts_with("no controller answers: it may be"), "{stderr}");
    assert!(stderr.contains("sally: no controller answers on the broker at"), "{stderr}");

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

#[tokio::test]
async fn a_controller_that_is_away_for_a_moment_is_waited_for() {
    let mut house = House::start(false).await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_sally"));
    command.arg("--context").arg(&house.context).args(["exec", "-a", "x", "-o", "json", "--", "fine"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stderr = tokio::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut stderr, &mut line).await.unwrap();
    assert!(line.contains("trying for some seconds"), "{line}");
    // It has heard that nobody is there; now somebody comes.
    house.serve().await;
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    let whole: JobWithRuns = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), whole.job.state), (Some(0), JobState::Succeeded));
    assert_eq!(house.submits.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_said_of_delivery_reaches_the_controller() {
    let house = House::start(true).await;
    let line = "exec -a local-1 --idempotent --retries 2 --retry-on exit=75 --backoff 2s --priority 9 \
                --latest-only nightly --lane direct --offline fail -- fine";
    let (code, _, stderr) = said(&house.sally(line).await);
    assert_eq!(code, Some(0), "{stderr}");
    let (submit, order) = house.last_submit();
    assert_eq!((submit.priority, submit.lane, submit.offline), (9, Lane::Direct, Offline::Fail));
    assert_eq!(submit.latest_only.as_deref(), Some("nightly"));
    let retry = order.task.retry.unwrap();
    assert_eq!((retry.attempts, retry.backoff_ms, order.task.idempotent), (3, 2_000, true));

    let (_, _, stderr) = said(&house.sally("exec -a local-1 -- fine").await);
    let (submit, order) = house.last_submit();
    assert_eq!((submit.priority, submit.lane), (limit::PRIORITY_DEFAULT, Lane::Queue), "{stderr}");
    assert!(order.task.retry.is_none() && !order.task.idempotent && submit.retry_of.is_none());
}

#[tokio::test]
async fn secrets_are_sealed_to_each_target_before_anything_is_sent() {
    let house = House::start(true).await;
    let file = house.context.with_file_name("password");
    std::fs::write(&file, "hunter2").unwrap();
    let secret = format!("--secret db=@{}", file.display());
    let (code, _, stderr) = said(&house.sally(&format!("exec -a local-* {secret} -- fine")).await);
    assert_eq!(code, Some(0), "{stderr}");
    let (submit, order) = house.last_submit();
    assert!(!submit.order.contains("hunter2"));
    assert_eq!(order.targets.agents, ["local/local-1"], "nobody else gets it, whoever comes to match");
    let [sealed] = order.task.secrets.as_slice() else { panic!("{:?}", order.task.secrets) };
    assert_eq!(&sealed.agent_key, agent_key().public());
    let opened = house.curve.open(sealed, &order.request_id, &submit.signatures);
    assert_eq!(opened.as_deref(), Ok(&b"hunter2"[..]));

    let (code, _, stderr) = said(&house.sally(&format!("exec --all {secret} -- fine")).await);
    assert!(code == Some(6) && stderr.contains("local/local-2") && stderr.contains("hint:"), "{stderr}");
    // Who is left out needs no key.
    let (code, _, stderr) = said(&house.sally(&format!("exec --all --offline skip {secret} -- fine")).await);
    assert_eq!(code, Some(0), "{stderr}");

    let (code, _, stderr) = said(&house.sally("exec -a local-1 --secret db=hunter3 -- fine").await);
    assert!(code == Some(2) && stderr.contains("@FILE") && !stderr.contains("hunter3"), "{stderr}");

    let (code, _, stderr) = said(&house.sally("job retry latest --only all").await);
    assert!(code == Some(2) && stderr.contains("--secret db=@FILE"), "{stderr}");
    let (code, _, stderr) = said(&house.sally(&format!("job retry latest --only all {secret}")).await);
    assert_eq!(code, Some(0), "{stderr}");
    let (again, order_again) = house.last_submit();
    assert_ne!(order_again.request_id, order.request_id);
    let opened = house.curve.open(&order_again.task.secrets[0], &order_again.request_id, &again.signatures);
    assert_eq!(opened.as_deref(), Ok(&b"hunter2"[..]));
}

#[tokio::test]
async fn a_retry_is_a_new_job_for_the_runs_that_are_named() {
    let house = House::start(true).await;
    let (code, stdout, _) = said(&house.sally("exec --all --expires 2h -o json -- mixed").await);
    assert_eq!(code, Some(3));
    let first: JobWithRuns = serde_json::from_str(&stdout).unwrap();
    let (_, before) = house.last_submit();

    let (code, stdout, stderr) = said(&house.sally("job retry latest -o json").await);
    assert_eq!(code, Some(3), "it fails again: {stderr}");
    let second: JobWithRuns = serde_json::from_str(&stdout).unwrap();
    assert_eq!(second.job.retry_of, Some(first.job.id));
    let (submit, order) = house.last_submit();
    assert_eq!(order.targets.agents, ["local/local-2"]);
    assert_eq!(serde_json::to_value(&order.task).unwrap(), serde_json::to_value(&before.task).unwrap());
    assert_eq!(order.expires_ms - order.created_ms, 2 * 3600 * 1000);
    assert_ne!(order.request_id, before.request_id);
    assert_eq!((submit.priority, submit.lane, submit.offline), (7, Lane::Direct, Offline::Skip), "as before");

    let line = "job retry latest --only failed,unknown --detach --priority 0 --lane queue --offline wait \
                --request-id again-1 --expires 1m";
    let (code, id, _) = said(&house.sally(line).await);
    assert!(code == Some(0) && id.trim().parse::<JobId>().is_ok(), "{id}");
    let (submit, order) = house.last_submit();
    assert_eq!((submit.priority, submit.lane, submit.offline), (0, Lane::Queue, Offline::Wait));
    assert_eq!((order.request_id.as_str(), order.expires_ms - order.created_ms), ("again-1", 60_000));

    let count = house.submits.lock().unwrap().len();
    let (code, _, stderr) = said(&house.sally("job retry latest --only expired,not-started").await);
    assert!(code == Some(4) && stderr.contains("no run that is expired or not-started"), "{stderr}");
    let (code, stdout, _) = said(&house.sally("job retry latest --plan -o name").await);
    assert_eq!((code, stdout.as_str()), (Some(0), "local/local-1\n"));
    assert_eq!(house.submits.lock().unwrap().len(), count, "nothing was submitted");
}

#[tokio::test]
async fn cancelling_by_request_id_works_before_there_is_a_job() {
    let house = House::start(true).await;
    let (code, _, stderr) = said(&house.sally("job cancel --request-id nightly").await);
    assert!(
        code == Some(0) && stderr.contains("nightly yet: it will be cancelled when it comes"),
        "{stderr}"
    );
    said(&house.sally("exec -a local-1 --request-id nightly --detach -- never").await);
    let (code, _, stderr) = said(&house.sally("job cancel --request-id nightly --hard").await);
    assert!(code == Some(0) && stderr.contains("one run will be cancelled"), "{stderr}");
}

#[tokio::test]
async fn waiting_work_is_listed_purged_drained_and_agents_are_asked() {
    let house = House::start(true).await;
    let (code, stdout, _) = said(&house.sally("agent waiting local-1 -o json").await);
    let listed: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, listed["runs"].as_array().map(Vec::len)), (Some(0), Some(3)), "all pages");
    let (_, stdout, _) = said(&house.sally("agent waiting local/local-1 -n 1 -o name").await);
    assert_eq!(stdout.lines().count(), 1);
    let (code, _, _) = said(&house.sally("agent waiting local-9").await);
    assert_eq!(code, Some(4));

    let (code, _, stderr) = said(&house.sally("agent purge -a local-1").await);
    assert!(code == Some(2) && stderr.contains("3 runs wait for local/local-1") && stderr.contains("--yes"));
    let (code, _, stderr) = said(&house.sally("agent purge -a local-1 --yes").await);
    assert_eq!((code, stderr.as_str()), (Some(0), "3 runs cancelled that waited for local/local-1\n"));
    let (_, stdout, _) = said(&house.sally("agent purge -a local-1 --yes -o jsonl").await);
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["runs"], 3);
    let (code, _, stderr) = said(&house.sally("agent forget local-1").await);
    assert!(code == Some(2) && stderr.contains("will be forgotten"), "{stderr}");
    let (code, _, stderr) = said(&house.sally("agent forget local-1 -y").await);
    assert!(code == Some(0) && stderr.contains("1 run cancelled; forgotten: local/local-1"), "{stderr}");

    let (code, _, stderr) = said(&house.sally("agent drain -a local-1").await);
    assert!(code == Some(0) && stderr.starts_with("drained: local/local-1"), "{stderr}");
    let (_, stdout, _) = said(&house.sally("agent resume --all -o name").await);
    assert_eq!(stdout, "local/local-2\n");
    let (code, _, stderr) = said(&house.sally("agent drain").await);
    assert!(code == Some(2) && stderr.contains("no target"), "{stderr}");
    let (_, stdout, _) = said(&house.sally("agent ls").await);
    assert!(stdout.contains("online (draining)"), "{stdout}");

    let (code, stdout, _) = said(&house.sally("agent ping").await);
    assert!(code == Some(0) && stdout.contains("1.5ms"), "{stdout}");
    let (code, stdout, stderr) = said(&house.sally("agent ping --wait 100ms -o json").await);
    assert!(code == Some(5) && stderr.contains("no answer within 100ms: local/local-2"), "{stderr}");
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["agents"][0]["skew_ms"], -3);
}

#[tokio::test]
async fn output_goes_on_after_a_byte() {
    let house = House::start(true).await;
    said(&house.sally("exec --all -- fine").await);
    let (code, stdout, stderr) =
        said(&house.sally("job logs latest -a local-1 --stdout --after 4 --raw").await);
    assert_eq!((code, stdout.as_str()), (Some(0), &OUTPUT[4..]), "{stderr}");
    let (_, stdout, _) =
        said(&house.sally("job logs latest --stdout --after 0.1.stdout=8,1.1.stdout=12").await);
    assert_eq!(stdout, "local-1 | two\n");
    // Of another attempt it says nothing.
    let (_, stdout, _) = said(&house.sally("job logs latest -a local-1 --after 0.2.stdout=8").await);
    assert_eq!(stdout, OUTPUT);
    let (code, _, stderr) = said(&house.sally("job logs latest --after 4").await);
    assert!(code == Some(2) && stderr.contains("one stream of one run"), "{stderr}");
}

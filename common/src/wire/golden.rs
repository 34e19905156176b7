//! Golden files: `common/golden/` pins the bytes of every message kind, in both directions.
//!
//! `UPDATE_GOLDEN=1 cargo test -p sally-common golden` writes them anew. A change of an existing file is a change of
//! the wire: ask what an old reader does with new data, a new reader with old data, and an old writer that drops a
//! new field, and say the answers in the commit.
//!
//! A `.txt` file is a message: its headers, an empty line, its exact body, and one line feed that is not part of the
//! body. A message without headers (output, which the signed result covers) begins with the empty line. An order has
//! no headers of its own when it travels, its signature stands in `order_signatures`; here it is shown as headers.
//! A `.json` file is a document without a signature. `optional-fields.txt` lists what each reader can do without.
//!
//! Keys are those of the secrets 32 × n: 1 a caller, 2 a controller, 3 an agent, 4 a second caller.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Once;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::api::{
    ApiError, Call, Change, ErrorCode, Event, HEADER_PART, Hello, Offline, Reply, ReplyOutcome, Request,
    Submit,
};
use super::command::{Answer, Cancel, Chunk, Dispatch, Lane, Probe, Receipt, RunAttempt, Stored, To};
use super::enrol::{Enrol, Enrolled, Identity, NotEnrolled, Outcome, Papers};
use super::order::{ACCOUNT_LAYER, Content, Order, Program, Retry, RetryOn, SealedSecret, Task};
use super::record::*;
use super::report::*;
use super::{
    Envelope, Kind, OrderSignature, Refusal, VERSION, join_head, read, split_head, to_bytes, verify,
};
use crate::id::{Digest, Incarnation, JobId, Nonce, RunId};
use crate::key::SigningKey;
use crate::limit;
use crate::name::{Agent, ProfileName, TaskName, User, Zone};
use crate::selector::Targets;
use crate::trust::{Caller, TrustList};

// ---- the checks

#[test]
fn bytes_and_signatures_are_the_files() {
    update_if_asked();
    let mut wrong = Vec::new();
    for (file, text) in files() {
        match std::fs::read(folder().join(&file)) {
            Ok(found) if found == text => {}
            Ok(found) => {
                let (found, text) = (String::from_utf8_lossy(&found), String::from_utf8_lossy(&text));
                wrong.push(format!("{file}\n  file: {found}\n  code: {text}"));
            }
            Err(error) => wrong.push(format!("{file}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "see the top of golden.rs before you update:\n{}", wrong.join("\n"));
}

#[test]
fn files_are_believed_and_read_back_to_the_same_bytes() {
    update_if_asked();
    for sample in samples() {
        let (headers, body) = sample.file();
        assert_eq!((sample.reread)(&body), Ok(body.clone()), "{}", sample.file);
        let Some((kind, key)) = sample.signed else {
            assert!(headers.is_empty(), "{} is not signed", sample.file);
            continue;
        };
        let signer = verify(kind, Some(&headers), &body, max_of(kind), |k| k == keys(key).public());
        assert_eq!(signer.as_ref(), Ok(keys(key).public()), "{}", sample.file);
        for other in Kind::ALL.into_iter().filter(|k| *k != kind) {
            let mut relabelled = headers.clone();
            relabelled.insert(super::HEADER_KIND, other.word());
            let answer = verify(other, Some(&relabelled), &body, usize::MAX, |_| true);
            assert_eq!(answer, Err(Refusal::BadSignature), "{} offered as {other}", sample.file);
        }
    }
}

#[test]
fn an_old_reader_takes_new_fields() {
    update_if_asked();
    for sample in samples() {
        let (_, body) = sample.file();
        let mut value = head(&body);
        add_everywhere(&mut value);
        let answer = (sample.reread)(&with_head(&body, &value));
        assert_eq!(answer.as_ref().map(|b| head(b)), Ok(head(&body)), "{} with unknown fields", sample.file);
    }
}

#[test]
fn a_new_reader_takes_old_data_without_the_optional_fields() {
    update_if_asked();
    for sample in samples() {
        // Each alone is covered by the list; the oldest writer has none of them.
        let without_all = sample.reads_without(&sample.optional());
        assert!(without_all, "{} without any optional field", sample.file);
    }
    let found = std::fs::read(folder().join(OPTIONAL)).unwrap();
    let (found, now) = (String::from_utf8(found).unwrap(), optional_fields());
    assert_eq!(found, now, "a field became required or optional");
}

#[test]
fn another_version_is_told_apart_from_nonsense() {
    update_if_asked();
    for sample in samples().into_iter().filter(|s| s.file.ends_with(".txt")) {
        let (_, body) = sample.file();
        let mut value = head(&body);
        value["v"] = 2.into();
        let answer = (sample.reread)(&with_head(&body, &value));
        assert_eq!(answer, Err(Refusal::UnsupportedVersion), "{}", sample.file);
        value.as_object_mut().unwrap().remove("v");
        let answer = (sample.reread)(&with_head(&body, &value));
        assert_eq!(answer, Err(Refusal::Malformed), "{} without a version", sample.file);
    }
}

#[test]
fn a_reply_in_parts_is_signed_as_a_whole() {
    update_if_asked();
    let parts = reply_parts();
    assert!(parts.len() > 1, "a sample in one part shows nothing");
    let mut joined = Vec::new();
    let mut signed = None;
    for (n, (file, _)) in parts.iter().enumerate() {
        let (headers, body) = split_file(&std::fs::read(folder().join(file)).unwrap());
        let part = headers.get(HEADER_PART).map(|h| h.as_str().to_owned());
        assert_eq!(part, Some(format!("{}/{}", n + 1, parts.len())), "{file}");
        joined.extend(body);
        signed = signed.or(Some(headers));
    }
    let signer =
        verify(Kind::Reply, signed.as_ref(), &joined, limit::API_REPLY_MAX, |k| k == keys(2).public());
    assert_eq!(signer.as_ref(), Ok(keys(2).public()));
    assert!(read::<Reply>(&joined).is_ok());
}

/// A watcher must be able to read the end of a run that gave a result.
#[test]
fn an_event_with_a_result_reads_back() {
    let change = Change::Run { run: Box::new(run_record()), whole: true, ended: None };
    let body = to_bytes(&Event { v: VERSION, job: job(), change });
    assert_eq!(reread::<Event>(&body), Ok(body));
}

#[test]
fn every_kind_has_a_file_and_every_file_a_use() {
    update_if_asked();
    for kind in Kind::ALL {
        assert!(samples().iter().any(|s| s.signed.is_some_and(|(k, _)| k == kind)), "{kind} has no file");
    }
    let used: BTreeSet<String> = files().into_iter().map(|(file, _)| file).collect();
    let there: BTreeSet<String> =
        std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, used);
}

// ---- files

const OPTIONAL: &str = "optional-fields.txt";
/// Bytes of a part in the sample; real parts are larger ([`limit::STREAM_CHUNK`]).
const PART: usize = 100;

/// Every file and what the code makes of it. Written first, once, if that was asked for.
fn files() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = samples().into_iter().map(|s| (s.file.clone(), s.to_file())).collect();
    files.extend(reply_parts());
    files.push((OPTIONAL.to_owned(), optional_fields().into_bytes()));
    files
}

/// Before any test reads a file.
static UPDATE: Once = Once::new();

fn update_if_asked() {
    if std::env::var_os("UPDATE_GOLDEN").is_none() {
        return;
    }
    UPDATE.call_once(|| {
        for (file, text) in files() {
            std::fs::write(folder().join(file), text).unwrap();
        }
    });
}

/// A reply in parts, as the controller sends one that is larger than a message.
fn reply_parts() -> Vec<(String, Vec<u8>)> {
    let whole = Envelope::seal(Kind::Reply, &keys(2), &reply(ok()));
    let of = whole.body.len().div_ceil(PART);
    let file = |(n, part): (usize, &[u8])| {
        let mut headers = if n == 0 { whole.headers() } else { async_nats::HeaderMap::new() };
        headers.insert(HEADER_PART, format!("{}/{of}", n + 1));
        (format!("reply-part-{}.txt", n + 1), file_text(&headers, part))
    };
    whole.body.chunks(PART).enumerate().map(file).collect()
}

fn optional_fields() -> String {
    let line = |sample: &Sample| {
        let names: BTreeSet<_> = sample.optional().iter().map(|path| path.join(".")).collect();
        let names: Vec<_> = names.into_iter().collect();
        format!("{}: {}\n", sample.file, names.join(" "))
    };
    samples().iter().map(line).collect()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn file_text(headers: &async_nats::HeaderMap, body: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for name in [super::HEADER_KIND, super::HEADER_KEY, super::HEADER_SIGNATURE, HEADER_PART] {
        if let Some(value) = headers.get(name) {
            text.extend(format!("{name}: {value}\n").bytes());
        }
    }
    text.push(b'\n');
    text.extend(body);
    text.push(b'\n');
    text
}

fn split_file(text: &[u8]) -> (async_nats::HeaderMap, Vec<u8>) {
    let mut headers = async_nats::HeaderMap::new();
    let mut rest = text;
    loop {
        let end = rest.iter().position(|b| *b == b'\n').unwrap();
        let line = std::str::from_utf8(&rest[..end]).unwrap();
        rest = &rest[end + 1..];
        if line.is_empty() {
            return (headers, rest.strip_suffix(b"\n").unwrap().to_vec());
        }
        let (name, value) = line.split_once(": ").unwrap();
        headers.insert(name, value);
    }
}

/// A message, who signs it, and how its reader reads and writes it again.
struct Sample {
    file: String,
    signed: Option<(Kind, u8)>,
    body: Vec<u8>,
    reread: fn(&[u8]) -> Result<Vec<u8>, Refusal>,
}

impl Sample {
    fn to_file(&self) -> Vec<u8> {
        if self.file.ends_with(".json") {
            return [self.body.as_slice(), b"\n"].concat();
        }
        let headers = self
            .signed
            .map(|(kind, key)| Envelope::seal_bytes(kind, &keys(key), self.body.clone()).headers());
        file_text(&headers.unwrap_or_default(), &self.body)
    }

    fn file(&self) -> (async_nats::HeaderMap, Vec<u8>) {
        let text = std::fs::read(folder().join(&self.file)).unwrap();
        if self.file.ends_with(".json") {
            return (async_nats::HeaderMap::new(), text.strip_suffix(b"\n").unwrap().to_vec());
        }
        split_file(&text)
    }

    fn reads_without(&self, fields: &[Vec<String>]) -> bool {
        let mut value = head(&self.body);
        fields.iter().for_each(|path| remove(&mut value, path));
        (self.reread)(&with_head(&self.body, &value)).is_ok()
    }

    /// The fields without which the message can be read.
    fn optional(&self) -> Vec<Vec<String>> {
        let mut paths = Vec::new();
        paths_of(&head(&self.body), &mut Vec::new(), &mut paths);
        paths.retain(|path| self.reads_without(std::slice::from_ref(path)));
        paths
    }
}

fn reread<T: Serialize + DeserializeOwned>(body: &[u8]) -> Result<Vec<u8>, Refusal> {
    read::<T>(body).map(|message| to_bytes(&message))
}

fn reread_head<T: Serialize + DeserializeOwned>(body: &[u8]) -> Result<Vec<u8>, Refusal> {
    split_head::<T>(body).map(|(head, payload)| join_head(&head, payload))
}

/// A document outside the envelope has no `v` of the wire.
fn reread_document<T: Serialize + DeserializeOwned>(body: &[u8]) -> Result<Vec<u8>, Refusal> {
    serde_json::from_slice::<T>(body).map(|document| to_bytes(&document)).map_err(|_| Refusal::Malformed)
}

// ---- changing JSON

fn head(body: &[u8]) -> Value {
    let end = body.iter().position(|b| *b == b'\n').unwrap_or(body.len());
    serde_json::from_slice(&body[..end]).unwrap()
}

fn with_head(body: &[u8], head: &Value) -> Vec<u8> {
    match body.iter().position(|b| *b == b'\n') {
        Some(end) => join_head(head, &body[end + 1..]),
        None => to_bytes(head),
    }
}

/// Objects whose keys are data, not fields; and JSON that only its owner reads.
fn is_data(key: &str) -> bool {
    ["params", "env", "labels", "layers", "counts", "refused", "lost", "result", "ok"].contains(&key)
}

/// Objects with one key that says what the value is: another key beside it is another value, not a field.
fn is_choice(key: &str) -> bool {
    ["inline", "outcome"].contains(&key)
}

fn add_everywhere(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields.iter_mut().filter(|(key, _)| !is_data(key)) {
                match inner {
                    Value::Object(choice) if is_choice(key) => {
                        choice
                            .iter_mut()
                            .filter(|(key, _)| !is_data(key))
                            .for_each(|(_, v)| add_everywhere(v));
                    }
                    inner => add_everywhere(inner),
                }
            }
            fields.insert("added_later".into(), serde_json::json!({"a": [1, null]}));
        }
        Value::Array(items) => items.iter_mut().for_each(add_everywhere),
        _ => {}
    }
}

fn paths_of(value: &Value, at: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(key, inner)| (key.clone(), inner)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(n, inner)| (n.to_string(), inner)).collect(),
        _ => return,
    };
    for (key, inner) in inner {
        at.push(key.clone());
        if value.is_object() {
            paths.push(at.clone());
        }
        if !is_data(&key) {
            paths_of(inner, at, paths);
        }
        at.pop();
    }
}

fn remove(value: &mut Value, path: &[String]) {
    let Some((last, before)) = path.split_last() else { return };
    let mut at = value;
    for key in before {
        let inner = match at {
            Value::Array(items) => key.parse::<usize>().ok().and_then(|n| items.get_mut(n)),
            other => other.get_mut(key),
        };
        // Its parent went before it.
        let Some(inner) = inner else { return };
        at = inner;
    }
    if let Some(fields) = at.as_object_mut() {
        fields.remove(last);
    }
}

fn max_of(kind: Kind) -> usize {
    match kind {
        Kind::Order => limit::ORDER_MAX,
        Kind::Dispatch | Kind::Cancel | Kind::Receipt | Kind::Answer | Kind::Chunk | Kind::Probe => {
            limit::LIVE_MESSAGE_MAX
        }
        Kind::State | Kind::Heartbeat | Kind::Ask => limit::SMALL_MESSAGE_MAX,
        Kind::Enrol | Kind::Identity | Kind::Enrolled => limit::SMALL_MESSAGE_MAX,
        Kind::Result => limit::RESULT_MESSAGE_MAX,
        Kind::Request | Kind::Event => limit::API_MESSAGE_MAX,
        Kind::Reply => limit::API_REPLY_MAX,
    }
}

// ---- the samples

fn keys(n: u8) -> SigningKey {
    SigningKey::from_secret([n; 32])
}

fn run() -> RunId {
    job().run(2)
}

fn job() -> JobId {
    "01kc5qxyz0abcdefghjkmnpqrs".parse().unwrap()
}

fn zone() -> Zone {
    Zone::new("dmz").unwrap()
}

fn agent() -> Agent {
    Agent::new("web-01").unwrap()
}

fn nonce() -> Nonce {
    Nonce::from_bytes([0xab; 16])
}

fn to() -> To {
    To { zone: zone(), agent: agent(), agent_key: keys(3).public().clone(), incarnation: incarnation() }
}

fn from() -> From {
    From { zone: zone(), agent: agent(), incarnation: incarnation(), counter: 41, journal: Some(17) }
}

fn incarnation() -> Incarnation {
    Incarnation::from_bytes([0x1c; 16])
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

/// 2026-11-21T08:00:00.000Z.
const NOW_MS: i64 = 1_795_248_000_000;

fn samples() -> Vec<Sample> {
    [orders(), commands(), reports(), asks(), requests(), answers(), events(), enrolments(), documents()]
        .into_iter()
        .flatten()
        .collect()
}

fn signed<T: Serialize + DeserializeOwned>(file: &str, kind: Kind, key: u8, message: &T) -> Sample {
    let (file, body) = (format!("{file}.txt"), to_bytes(message));
    Sample { file, signed: Some((kind, key)), body, reread: reread::<T> }
}

fn headed<T: Serialize + DeserializeOwned>(
    file: &str,
    signed: Option<(Kind, u8)>,
    head: &T,
    payload: &[u8],
) -> Sample {
    let (file, body) = (format!("{file}.txt"), join_head(head, payload));
    Sample { file, signed, body, reread: reread_head::<T> }
}

fn document<T: Serialize + DeserializeOwned>(file: &str, document: &T) -> Sample {
    let (file, body) = (format!("{file}.json"), to_bytes(document));
    Sample { file, signed: None, body, reread: reread_document::<T> }
}

const SCRIPT: &[u8] = b"#!/bin/sh\necho hi\necho '{\"a\":1}' >&3\n";

fn order(task: Task, targets: Targets) -> Order {
    Order {
        v: VERSION,
        request_id: "cmdb:4711".parse().unwrap(),
        by: User::new("ann").unwrap(),
        created_ms: NOW_MS,
        expires_ms: NOW_MS + 86_400_000,
        targets,
        task,
    }
}

fn whole_task() -> Task {
    Task {
        title: Some("hi.sh".into()),
        name: Some(TaskName::new("say-hi").unwrap()),
        program: Program::Script { content: Content::of(SCRIPT), interpreter: Some("/bin/sh".into()) },
        args: vec!["-v".into(), "two words".into()],
        env: BTreeMap::from([("LEVEL".into(), "3".into())]),
        params: Some(raw(r#"{"disk":"/","min":1.50}"#)),
        stdin: Some(Content { text: None, ..Content::of(b"\x00binary") }),
        secrets: vec![SealedSecret {
            name: "token".into(),
            agent_key: keys(3).public().clone(),
            sealed: "c2VhbGVk".into(),
        }],
        profile: profile("host"),
        require_layers: vec!["no_new_privs".into()],
        user: None,
        keep: false,
        timeout_ms: 3_600_000,
        grace_ms: 10_000,
        require_result: true,
        idempotent: true,
        retry: Some(Retry {
            attempts: 3,
            on: vec![RetryOn::Interrupted, RetryOn::Exit(70, 79)],
            backoff_ms: 2_000,
            backoff_max_ms: 60_000,
        }),
    }
}

/// As short as a task can be.
fn command_task() -> Task {
    Task {
        title: None,
        name: None,
        program: Program::Command,
        args: vec!["uname".into(), "-r".into()],
        env: BTreeMap::new(),
        params: None,
        stdin: None,
        secrets: vec![],
        profile: ProfileName::default(),
        require_layers: vec![],
        user: None,
        keep: false,
        timeout_ms: 60_000,
        grace_ms: 10_000,
        require_result: false,
        idempotent: false,
        retry: None,
    }
}

/// As an account, in a profile of the agent's operator, with its folder kept.
fn account_task() -> Task {
    Task {
        profile: profile("db-audit"),
        require_layers: vec![ACCOUNT_LAYER.into(), "cgroup_memory".into()],
        user: Some("oracle".into()),
        keep: true,
        ..command_task()
    }
}

fn profile(name: &str) -> ProfileName {
    ProfileName::new(name).unwrap()
}

fn short_order() -> Order {
    order(command_task(), Targets { all: true, ..Targets::default() })
}

fn signature_of(n: u8, order: &[u8]) -> OrderSignature {
    OrderSignature { key: keys(n).public().clone(), signature: keys(n).sign(Kind::Order, order) }
}

fn orders() -> Vec<Sample> {
    let targets = Targets {
        agents: vec!["web-*".into(), "dmz/db-1".into()],
        zones: vec![zone()],
        selectors: vec!["role in (web,db),!canary".into()],
        all: false,
    };
    vec![
        signed("order-script", Kind::Order, 1, &order(whole_task(), targets)),
        signed("order-command", Kind::Order, 1, &short_order()),
        signed("order-account", Kind::Order, 1, &Order { task: account_task(), ..short_order() }),
    ]
}

fn dispatch(order: Option<String>, signatures: Vec<OrderSignature>) -> Dispatch {
    let bytes = to_bytes(&short_order());
    Dispatch {
        v: VERSION,
        to: to(),
        run: run(),
        attempt: 1,
        issued_ms: NOW_MS + 20,
        expires_ms: NOW_MS + 86_400_000,
        order_digest: Digest::of(&bytes),
        order_bytes: bytes.len() as u64,
        order,
        order_signatures: signatures,
        answers: None,
        lane: Lane::Queue,
        more: true,
    }
}

fn commands() -> Vec<Sample> {
    let bytes = to_bytes(&short_order());
    let text = String::from_utf8(bytes.clone()).unwrap();
    let inline = dispatch(Some(text), vec![signature_of(1, &bytes)]);
    let by_digest = dispatch(None, vec![signature_of(1, &bytes), signature_of(4, &bytes)]);
    let direct = Dispatch { answers: Some(nonce()), lane: Lane::Direct, ..by_digest.clone() };
    let probe = Probe { v: VERSION, to: to(), nonce: nonce() };
    let cancel = Cancel { v: VERSION, to: to(), run: run(), attempt: 1, issued_ms: NOW_MS + 900, hard: true };
    let receipt = |stored| Receipt { v: VERSION, to: to(), run: run(), attempt: 1, stored };
    let result = Stored::Result { digest: Digest::of(&to_bytes(&inline_result())) };
    let stream = Stored::Stream { stream: "stdout".into(), bytes: 1_048_576 };
    let answer = |welcome, message: Option<String>| Answer {
        v: VERSION,
        to: to(),
        nonce: nonce(),
        now_ms: NOW_MS + 30,
        welcome,
        waiting: 3,
        given: 2,
        renew: message.is_some(),
        message,
    };
    let refused = answer(false, Some("the journal is an old copy".into()));
    let chunk =
        Chunk { v: VERSION, to: to(), digest: Digest::of(SCRIPT), offset: 0, total: SCRIPT.len() as u64 };
    let missing = Chunk { total: 0, ..chunk.clone() };
    vec![
        signed("dispatch-inline", Kind::Dispatch, 2, &inline),
        signed("dispatch-by-digest", Kind::Dispatch, 2, &by_digest),
        signed("dispatch-direct", Kind::Dispatch, 2, &direct),
        signed("probe", Kind::Probe, 2, &probe),
        signed("cancel", Kind::Cancel, 2, &cancel),
        signed("receipt-result", Kind::Receipt, 2, &receipt(result)),
        signed("receipt-stream", Kind::Receipt, 2, &receipt(stream)),
        signed("answer-welcome", Kind::Answer, 2, &answer(true, None)),
        signed("answer-refused", Kind::Answer, 2, &refused),
        headed("chunk", Some((Kind::Chunk, 2)), &chunk, SCRIPT),
        headed("chunk-not-held", Some((Kind::Chunk, 2)), &missing, b""),
    ]
}

fn progress() -> Progress {
    Progress { done: Some(3.0), total: Some(10.0), text: Some("third".into()) }
}

fn inline_result() -> ResultMessage {
    ResultMessage {
        v: VERSION,
        from: from(),
        run: run(),
        attempt: 1,
        order_digest: Digest::of(&to_bytes(&short_order())),
        state: RunState::Failed,
        exit_code: Some(7),
        signal: None,
        reason: Some("exit-code".into()),
        message: Some("exit code 7".into()),
        started_ms: Some(NOW_MS + 50),
        finished_ms: NOW_MS + 90,
        duration_ms: Some(40),
        result_state: ResultState::Valid,
        result: Some(raw(r#"{"a":1,"b":1.50}"#)),
        result_stream: None,
        result_error: None,
        failure: None,
        changed: None,
        progress: None,
        artifacts: vec![],
        stdout: StreamEnd::inline("hi 世界\n".as_bytes(), 0),
        stderr: StreamEnd::inline(b"\xff\x00", 0),
        usage: Some(usage()),
        sandbox: Some(SandboxReport {
            profile: ProfileName::default(),
            uid: 200_001,
            layers: layers(),
            network: Some(network()),
        }),
        leftovers: 0,
    }
}

fn streamed_result() -> ResultMessage {
    let stream = |bytes: &[u8]| StreamEnd { inline: None, ..StreamEnd::inline(bytes, 0) };
    ResultMessage {
        state: RunState::TimedOut,
        exit_code: None,
        signal: Some(15),
        reason: Some("timeout".into()),
        result_state: ResultState::Invalid,
        result: None,
        result_stream: Some(stream(b"{}")),
        result_error: Some(ResultError { offset: Some(12), message: "duplicate key".into() }),
        failure: Some(failure()),
        changed: Some(true),
        progress: Some(progress()),
        artifacts: vec![artifact()],
        stdout: StreamEnd { dropped: 77, ..stream(b"much") },
        stderr: stream(b""),
        leftovers: 2,
        ..inline_result()
    }
}

fn artifact() -> Artifact {
    Artifact { name: "report".into(), path: "out/report.html".into(), ..Artifact::default() }
}

fn result_with_artifacts() -> ResultMessage {
    let kept = Artifact {
        bytes: Some(6),
        digest: Some(Digest::of(b"<html>")),
        stream: Some("artifact-0".into()),
        ..artifact()
    };
    let error = Some("there is no such file in the work folder".into());
    let lost = Artifact { name: "gone".into(), path: "gone".into(), error, ..Artifact::default() };
    ResultMessage { artifacts: vec![kept, lost], ..inline_result() }
}

fn failure() -> Failure {
    Failure { code: "disk-full".into(), text: "no room on /".into(), retryable: true }
}

fn usage() -> Usage {
    Usage { cpu_ms: Some(3), memory_peak_bytes: Some(2_097_152), pids_peak: None }
}

fn network() -> super::record::NetworkReport {
    super::record::NetworkReport {
        allowed: vec!["db.example:5432".into(), "10.2.0.0/24:8000-8010".into()],
        connections: 2,
        refused: 1,
        failed: 1,
        trouble: Some("db.example:5432: Connection refused".into()),
    }
}

fn layers() -> BTreeMap<String, LayerState> {
    let layers =
        [("net", LayerState::Enforced), ("pid", LayerState::Degraded), ("seccomp", LayerState::Absent)];
    layers.into_iter().map(|(name, state)| (name.to_owned(), state)).collect()
}

fn reports() -> Vec<Sample> {
    let state = |news| State { v: VERSION, from: from(), run: run(), attempt: 1, at_ms: NOW_MS + 51, news };
    let refused =
        News::Refused { reason: Refusal::Policy, message: "profile host is not allowed here".into() };
    let started = News::Started { started_ms: NOW_MS + 50 };
    let deferred = News::Deferred { reason: Refusal::NoRoom, message: Some("4 MiB are free on /var".into()) };
    let ended = News::Ended {
        attempt: 2,
        state: RunState::Failed,
        exit_code: Some(7),
        finished_ms: NOW_MS + 90,
        digest: Digest::of(b"result"),
    };
    let log = LogChunk { v: VERSION, run: run(), attempt: 1, stream: "stdout".into(), offset: 262_144 };
    vec![
        signed("state-accepted", Kind::State, 3, &state(News::Accepted)),
        signed("state-started", Kind::State, 3, &state(started)),
        signed("state-progress", Kind::State, 3, &state(News::Progress { progress: progress() })),
        signed("state-refused", Kind::State, 3, &state(refused)),
        signed("state-deferred", Kind::State, 3, &state(deferred)),
        signed("state-ended", Kind::State, 3, &state(ended)),
        signed("result-inline", Kind::Result, 3, &inline_result()),
        signed("result-streamed", Kind::Result, 3, &streamed_result()),
        signed("result-artifacts", Kind::Result, 3, &result_with_artifacts()),
        signed("heartbeat", Kind::Heartbeat, 3, &heartbeat()),
        headed("log-chunk", None, &log, b"one line\nanother line\n"),
    ]
}

fn enrolments() -> Vec<Sample> {
    let token = Nonce::from_bytes([7; 16]);
    let agent_key = keys(3).public().clone();
    let identity = Identity {
        v: VERSION,
        token,
        zone: zone(),
        agent: Agent::new("web-1").unwrap(),
        key: agent_key,
        user: keys(4).public().to_string(),
    };
    let bytes = to_bytes(&identity);
    let request = Enrol {
        v: VERSION,
        nonce: token,
        identity: String::from_utf8(bytes.clone()).unwrap(),
        signature: keys(3).sign(Kind::Identity, &bytes),
    };
    let trust = TrustList {
        version: 1,
        expires_ms: NOW_MS + 1,
        threshold: 1,
        controllers: vec![keys(2).public().clone()],
        callers: vec![],
    };
    let papers = Papers { zone: zone(), agent: Agent::new("web-1").unwrap(), jwt: "a.b.c".into(), trust };
    let answer = |outcome| Enrolled { v: VERSION, nonce: token, outcome };
    vec![
        signed("enrol-identity", Kind::Identity, 3, &identity),
        signed("enrol-request", Kind::Enrol, 5, &request),
        signed("enrol-papers", Kind::Enrolled, 2, &answer(Outcome::Papers(Box::new(papers)))),
        signed("enrol-refused", Kind::Enrolled, 2, &answer(Outcome::Refused(NotEnrolled::UsedUp))),
    ]
}

fn heartbeat() -> Heartbeat {
    Heartbeat {
        v: VERSION,
        from: from(),
        boot_id: "7d1f6c3e-0000-4000-8000-000000000001".into(),
        sent_ms: NOW_MS,
        interval_s: 30,
        state: AgentCondition::Online,
        version: "0.1.0".into(),
        slots: Slots { used: 1, total: 4 },
        running: vec![RunAttempt { run: run(), attempt: 1 }],
        spool: SpoolStatus { results: 2, bytes: 4096, oldest_ms: Some(NOW_MS - 60_000) },
        labels: BTreeMap::from([("role".into(), "web".into())]),
        host: HostFacts {
            hostname: "web-01".into(),
            os: "Debian GNU/Linux 13 (trixie)".into(),
            kernel: "6.12.0".into(),
            arch: "x86_64".into(),
            load1: 0.25,
            disk_free_bytes: 1 << 30,
        },
        refused: BTreeMap::from([(Refusal::BadSignature, 1), (Refusal::Misdirected, 2)]),
        lost: BTreeMap::from([("journal-write".into(), 1)]),
        sandbox: SandboxAbility::new("root".into(), vec![profile("strict"), profile("host")], vec![]),
        last_error: Some("refused a message on the live subject: the message carries no signature".into()),
        goodbye: Some("stop".into()),
        instance: Some(nonce()),
        probe: Some(nonce()),
        curve_key: Some("XDAHFOKRYFMV2ROYACYIT2QOGX3BJQQNO7XVBJLLDXPUXF2KFNX4XXXX".into()),
        deferring: Some("4 MiB are free on /var".into()),
        journal_bytes: Some(1 << 20),
    }
}

fn asks() -> Vec<Sample> {
    let ask = |question| Ask { v: VERSION, from: from(), nonce: nonce(), question };
    let held = vec![RunAttempt { run: run(), attempt: 1 }];
    let work = Question::Work { credit: 4, boot: true, held, instance: Some(nonce()), held_is_all: false };
    let blob = Question::Blob { run: run(), digest: Digest::of(SCRIPT), offset: 15_360, chunks: 16 };
    vec![signed("ask-work", Kind::Ask, 3, &ask(work)), signed("ask-blob", Kind::Ask, 3, &ask(blob))]
}

fn requests() -> Vec<Sample> {
    let bytes = to_bytes(&short_order());
    let submit = Submit {
        order: String::from_utf8(bytes.clone()).unwrap(),
        signatures: vec![signature_of(1, &bytes)],
        offline: Offline::Skip,
        priority: 9,
        latest_only: Some("inventory".into()),
        lane: Lane::Direct,
        retry_of: Some(job()),
        watch: Some("_INBOX_cli.ann.w1".into()),
        watch_output: true,
    };
    let targets = Targets { agents: vec!["web-01".into()], ..Targets::default() };
    let watch = Call::Watch { job: job(), inbox: "_INBOX_cli.ann.w1".into(), output: true };
    let calls = vec![
        Call::Submit(submit),
        Call::Resolve { targets: targets.clone() },
        Call::Job { id: "latest".into() },
        Call::Runs { job: job(), from: 0, content: true, states: vec![RunState::Failed, RunState::TimedOut] },
        Call::Jobs { before: Some(job()), limit: 20 },
        Call::Log { run: run(), stream: "stderr".into(), offset: 524_288 },
        Call::Cancel { id: "01kc5".into(), hard: true },
        Call::CancelRequest { request_id: "cmdb:4711".parse().unwrap(), hard: true },
        Call::Order { job: job() },
        Call::Waiting { zone: zone(), agent: agent(), from: 100, limit: 50 },
        Call::Purge { targets: targets.clone() },
        Call::Drain { targets: targets.clone(), drain: true },
        Call::Ping { targets: targets.clone(), wait_ms: 2_000 },
        Call::Forget { zone: zone(), agent: agent() },
        Call::EnrolToken {
            zone: zone(),
            ttl_ms: 3_600_000,
            uses: 1,
            key: keys(5).public().clone(),
            user: keys(4).public().to_string(),
        },
        Call::Revoke { zone: zone(), agent: agent() },
        watch,
        Call::Agents,
        Call::Hello,
    ];
    let request = |call| Request { v: VERSION, at_ms: NOW_MS, nonce: nonce(), call };
    let blob = Call::Blob { digest: Digest::of(SCRIPT), offset: 0, total: SCRIPT.len() as u64 };
    let mut samples: Vec<_> = calls
        .into_iter()
        .map(|call| signed(&format!("request-{}", call.verb()), Kind::Request, 1, &request(call)))
        .collect();
    samples.push(headed("request-blob", Some((Kind::Request, 1)), &request(blob), SCRIPT));
    samples
}

fn reply(outcome: ReplyOutcome) -> Reply {
    Reply { v: VERSION, nonce: nonce(), outcome, payload: None }
}

fn ok() -> ReplyOutcome {
    let hello = Hello {
        version: "0.1.0".into(),
        broker: "2.15.1".into(),
        ledger: "7f3a".into(),
        caller: "ann".into(),
        request_id: None,
    };
    ReplyOutcome::Ok(raw(&serde_json::to_string(&hello).unwrap()))
}

fn answers() -> Vec<Sample> {
    let error = ApiError {
        code: ErrorCode::NoTarget,
        message: "there is no agent \"web-9\"".into(),
        hint: Some("see who there is with `sally agent ls`".into()),
    };
    vec![
        signed("reply-ok", Kind::Reply, 2, &reply(ok())),
        signed("reply-error", Kind::Reply, 2, &reply(ReplyOutcome::Error(error))),
    ]
}

fn events() -> Vec<Sample> {
    let event = |change| Event { v: VERSION, job: job(), change };
    let output = Change::Output { run: run(), agent: agent(), stream: "stdout".into(), offset: 0 };
    let without_result = RunRecord { result: None, result_state: Some(ResultState::Absent), ..run_record() };
    let changed = |ended| Change::Run { run: Box::new(without_result.clone()), whole: true, ended };
    vec![
        signed("event-run", Kind::Event, 2, &event(changed(None))),
        signed("event-run-last", Kind::Event, 2, &event(changed(Some(Box::new(job_record()))))),
        signed("event-ended", Kind::Event, 2, &event(Change::Ended { job: Box::new(job_record()) })),
        headed("event-output", None, &event(output), b"hi\n"),
    ]
}

fn job_record() -> JobRecord {
    JobRecord {
        id: job(),
        state: JobState::Failed,
        created_at: "2026-11-21T08:00:00.000Z".into(),
        by: "ann".into(),
        request_id: "cmdb:4711".parse().unwrap(),
        retry_of: None,
        title: "uname -r".into(),
        counts: BTreeMap::from([(RunState::Succeeded, 2), (RunState::Failed, 1)]),
    }
}

fn run_record() -> RunRecord {
    RunRecord {
        run: run(),
        agent: agent(),
        zone: zone(),
        state: RunState::Failed,
        is_final: true,
        attempt: 1,
        cancel_requested_at: None,
        exit_code: Some(7),
        signal: None,
        result: Some(raw(r#"{"a":1,"b":1.50}"#)),
        result_state: Some(ResultState::Valid),
        result_error: None,
        failure: Some(failure()),
        changed: Some(false),
        progress: Some(progress()),
        artifacts: vec![artifact()],
        stdout: "hi\n".into(),
        stderr: "/wA=".into(),
        stdout_encoding: TextEncoding::Utf8,
        stderr_encoding: TextEncoding::Base64,
        stdout_truncated_bytes: 0,
        stderr_truncated_bytes: 9,
        queued_at: "2026-11-21T08:00:00.000Z".into(),
        started_at: Some("2026-11-21T08:00:00.050Z".into()),
        finished_at: Some("2026-11-21T08:00:00.090Z".into()),
        duration_ms: Some(40),
        reason: Some("exit-code".into()),
        message: Some("exit code 7".into()),
        retry_at: Some("2026-11-21T08:00:05.000Z".into()),
        usage: Some(usage()),
        sandbox: Some(SandboxRecord {
            profile: ProfileName::default(),
            uid: 200_001,
            layers: layers(),
            network: Some(network()),
        }),
        leftovers: 1,
    }
}

fn documents() -> Vec<Sample> {
    let caller = |n: u8, name: &str| Caller { name: User::new(name).unwrap(), key: keys(n).public().clone() };
    let trust = TrustList {
        version: 3,
        expires_ms: NOW_MS + 365 * 86_400_000,
        threshold: 1,
        controllers: vec![keys(2).public().clone()],
        callers: vec![caller(1, "ann"), caller(4, "bob")],
    };
    let job = JobWithRuns { schema: SCHEMA, job: job_record(), runs: vec![run_record()] };
    vec![document("record-job", &job), document("trust-list", &trust)]
}

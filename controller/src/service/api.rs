//! What callers ask: checked, answered, signed.

use sally_common::clock::{now_ms, steady_ms};
use sally_common::id::{Digest, JobId, RunId};
use sally_common::key::PublicKey;
use sally_common::limit::{API_MESSAGE_MAX, BLOB_MAX, STREAM_CHUNK};
use sally_common::name::User;
use sally_common::nats::accounts::is_caller_inbox;
use sally_common::wire;
use sally_common::wire::api::{
    AgentPage, ApiError, BlobStored, Call, Cancelled, ErrorCode, HEADER_PART, Hello, JobPage, LogPart,
    OrderText, Reply, ReplyOutcome, Request, RequestCancelled, Resolved, RunPage,
};
use sally_common::wire::command::Lane;
use sally_common::wire::record::{JobRecord, RunState};
use sally_common::wire::{Envelope, Kind, Refusal, VERSION};
use serde::Serialize;
use serde_json::value::RawValue;

use super::submission::{internal, submit, usage};
use super::{Service, agents, enrol, records};
use crate::ledger::{Cancellation, FoundJob, Job};
use crate::store::{LogKey, Stream};

/// A request older or newer than this by the controller's clock is refused.
const CLOCK_SLACK_MS: i64 = 10 * 60 * 1000;
/// A page of runs holds about so many bytes; at least one run.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Runs of a page, at most.
const PAGE_RUNS: u32 = 500;
/// Jobs of a page, at most.
const PAGE_JOBS: u32 = 500;
/// Bytes of a piece of a stream.
const LOG_PART: usize = 512 * 1024;

/// Answers one request.
pub async fn answer(service: &Service, message: async_nats::Message) {
    // An answer goes to a caller's inbox and nowhere else: a caller could name an agent's subject.
    let Some(reply) = message.reply.as_ref().map(ToString::to_string).filter(|r| is_caller_inbox(r)) else {
        return tracing::warn!(subject = %message.subject, "refused a request that names no caller's inbox");
    };
    let (request, payload, caller) = match read(service, &message) {
        Ok(read) => read,
        Err(refusal) => {
            // Without a nonce there is nothing to tie an answer to.
            return tracing::warn!(subject = %message.subject, reason = %refusal.code(), "refused a request");
        }
    };
    let nonce = request.nonce;
    let outcome = match caller {
        Err(refusal) => {
            tracing::warn!(subject = %message.subject, reason = %refusal.code(), "refused a request");
            Err(ApiError {
                code: ErrorCode::Denied,
                message: format!("the request is refused: {refusal}"),
                hint: Some("a caller's public key must be on the controller's trust list".into()),
            })
        }
        Ok(_) if (now_ms() - request.at_ms).abs() > CLOCK_SLACK_MS => Err(ApiError {
            code: ErrorCode::Denied,
            message: "the clocks of caller and controller differ by more than ten minutes".into(),
            hint: Some("set the clock".into()),
        }),
        Ok(caller) => call(service, &caller, request.call, payload).await,
    };
    let outcome = match outcome {
        Ok(Answer { value, bytes }) => (ReplyOutcome::Ok(value), bytes),
        Err(error) => (ReplyOutcome::Error(error), None),
    };
    let (outcome, bytes) = outcome;
    let digest = bytes.as_ref().map(|bytes| Digest::of(bytes));
    send(service, reply, &Reply { v: VERSION, nonce, outcome, payload: digest }, bytes).await;
}

/// A request and its bytes, and who asks. A stranger who holds the key that signed is told so, instead of
/// being left to guess whether a controller is there; nothing else of a stranger's request is used.
type Asked = (Request, bytes::Bytes, Result<User, Refusal>);

fn read(service: &Service, message: &async_nats::Message) -> Result<Asked, Refusal> {
    let key =
        wire::verify(Kind::Request, message.headers.as_ref(), &message.payload, API_MESSAGE_MAX, |_| true)?;
    // A blob's bytes follow the request's line; a request itself is one line of JSON.
    let end = message.payload.iter().position(|b| *b == b'\n').unwrap_or(message.payload.len());
    let request = wire::read(&message.payload[..end])?;
    let rest = message.payload.slice((end + 1).min(message.payload.len())..);
    Ok((request, rest, caller(service, &key)))
}

fn caller(service: &Service, key: &PublicKey) -> Result<User, Refusal> {
    let trust = service.trust();
    if now_ms() >= trust.expires_ms {
        return Err(Refusal::TrustExpired);
    }
    trust.caller(key).map(|c| c.name.clone()).ok_or(Refusal::UnknownKey)
}

/// Sends a reply, in parts if it is large. The signature covers the line, which names the digest of the bytes behind it:
/// output is hashed once here and once by the caller, and not copied into JSON.
async fn send(service: &Service, inbox: String, reply: &Reply, bytes: Option<Vec<u8>>) {
    let envelope = Envelope::seal(Kind::Reply, &service.key, reply);
    let mut body = envelope.body.clone();
    if let Some(bytes) = bytes {
        body.reserve_exact(bytes.len() + 1);
        body.push(b'\n');
        body.extend_from_slice(&bytes);
    }
    let body = bytes::Bytes::from(body);
    let parts = body.len().div_ceil(STREAM_CHUNK).max(1);
    for n in 0..parts {
        let piece = body.slice(n * STREAM_CHUNK..((n + 1) * STREAM_CHUNK).min(body.len()));
        let mut headers = if n == 0 { envelope.headers() } else { async_nats::HeaderMap::new() };
        headers.insert(HEADER_PART, format!("{}/{parts}", n + 1));
        if let Err(error) = service.client.publish_with_headers(inbox.clone(), headers, piece).await {
            return tracing::warn!(%error, "could not answer");
        }
    }
}

/// What a call brings: a value, and for output the bytes behind it.
struct Answer {
    value: Box<RawValue>,
    bytes: Option<Vec<u8>>,
}

type Answered = Result<Answer, ApiError>;

async fn call(service: &Service, caller: &User, call: Call, payload: bytes::Bytes) -> Answered {
    match call {
        Call::Submit(request) => {
            if let Some(inbox) = request.watch.as_ref().filter(|i| !is_caller_inbox(i)) {
                return Err(usage(format!("{} is no caller's inbox", sally_common::name::show(inbox)), None));
            }
            value(&submit(service, caller, request).await?)
        }
        Call::Blob { digest, offset, total } => {
            if total > BLOB_MAX {
                return Err(usage(
                    format!("{total} bytes are more than the {BLOB_MAX} that may be sent"),
                    None,
                ));
            }
            let state = service.blobs.put_chunk(digest, offset, total, payload).await.map_err(internal)?;
            value(&BlobStored { bytes: state.bytes, complete: state.complete })
        }
        Call::Resolve { targets } => {
            let found = service.fleet().resolve(&targets, steady_ms())?;
            value(&Resolved { targets: found.into_iter().map(|(_, t)| t).collect() })
        }
        Call::Job { id } => value(&records::job(&find(service, &id).await?)),
        Call::Runs { job, from, content, states } => {
            value(&runs(service, &job, from, content, &states).await?)
        }
        Call::Jobs { before, limit } => {
            let limit = limit.clamp(1, PAGE_JOBS);
            let mut jobs = service.ledger.jobs(before.as_ref(), limit + 1).await.map_err(internal)?;
            let more = jobs.len() > limit as usize;
            jobs.truncate(limit as usize);
            value(&JobPage { jobs: jobs.iter().map(records::job).collect(), more })
        }
        Call::Log { run, stream, offset } => {
            let (part, bytes) = log(service, &run, &stream, offset).await?;
            Ok(Answer { bytes: Some(bytes), ..value(&part)? })
        }
        Call::CancelRequest { request_id, hard } => {
            let cancelled = service.ledger.cancel_request(&request_id, now_ms(), hard).await;
            value(&match cancelled.map_err(internal)? {
                Some(cancellation) => {
                    let Cancelled { job, runs } = tell_cancelled(service, &cancellation).await;
                    RequestCancelled { job: Some(job), runs }
                }
                None => RequestCancelled { job: None, runs: 0 },
            })
        }
        Call::Order { job } => value(&order(service, &job).await?),
        Call::Waiting { zone, agent, from, limit } => {
            value(&agents::waiting(service, &zone, &agent, from, limit).await?)
        }
        Call::Purge { targets } => value(&agents::purge(service, caller, &targets).await?),
        Call::Drain { targets, drain } => value(&agents::drain(service, &targets, drain).await?),
        Call::Ping { targets, wait_ms } => value(&agents::ping(service, &targets, wait_ms).await?),
        Call::Forget { zone, agent } => value(&agents::forget(service, caller, &zone, &agent).await?),
        Call::EnrolToken { zone, ttl_ms, uses, key, user } => {
            value(&enrol::token(service, caller, zone, ttl_ms, uses, &key, &user).await?)
        }
        Call::Revoke { zone, agent } => value(&enrol::revoke(service, caller, &zone, &agent).await?),
        Call::Cancel { id, hard } => value(&cancel(service, &id, hard).await?),
        Call::Watch { job, inbox, output } => {
            if !is_caller_inbox(&inbox) {
                return Err(usage(
                    format!("{} is no caller's inbox", sally_common::name::show(&inbox)),
                    None,
                ));
            }
            service.watchers().add(job.clone(), &inbox, output);
            value(&records::job(&job_of(service, &job).await?))
        }
        Call::Agents => {
            let waiting = service.ledger.waiting_counts().await.map_err(internal)?;
            let (now, wall) = (steady_ms(), now_ms());
            let fleet = service.fleet();
            let record = |m: &super::fleet::Member| {
                let name = (m.enrolled.zone.clone(), m.enrolled.agent.clone());
                m.record(now, wall, waiting.get(&name).copied().unwrap_or(0))
            };
            value(&AgentPage { agents: fleet.all().map(record).collect() })
        }
        Call::Hello => value(&Hello {
            version: sally_common::fail::version(env!("CARGO_PKG_VERSION")),
            broker: service.client.server_info().version,
            ledger: service.ledger.id().to_owned(),
            caller: caller.to_string(),
            request_id: None,
        }),
    }
}

fn value<T: Serialize>(answer: &T) -> Answered {
    let value = serde_json::value::to_raw_value(answer).map_err(internal)?;
    Ok(Answer { value, bytes: None })
}

async fn find(service: &Service, id: &str) -> Result<Job, ApiError> {
    match service.ledger.find_job(id).await.map_err(internal)? {
        FoundJob::One(job) => Ok(job),
        FoundJob::None => Err(ApiError {
            code: ErrorCode::NotFound,
            message: format!("there is no job \"{}\"", sally_common::name::show(id)),
            hint: Some("see which there are with `sally job ls`".into()),
        }),
        FoundJob::Ambiguous(n) => {
            Err(usage(format!("{n} jobs have ids that begin with \"{id}\""), Some("give more of the id")))
        }
    }
}

async fn job_of(service: &Service, id: &JobId) -> Result<Job, ApiError> {
    find(service, id.as_str()).await
}

async fn runs(
    service: &Service,
    job: &JobId,
    from: u32,
    content: bool,
    states: &[RunState],
) -> Result<RunPage, ApiError> {
    let row = job_of(service, job).await?;
    let rows = service.ledger.runs(job, from, PAGE_RUNS + 1, states).await.map_err(internal)?;
    let mut page = RunPage { runs: Vec::new(), next: None };
    let mut size = 0;
    for (n, run) in rows.iter().enumerate() {
        if n >= PAGE_RUNS as usize || size >= PAGE_BYTES {
            page.next = Some(run.id.index());
            break;
        }
        // Reports may be large: one at a time.
        let report = match run.state.is_end() {
            true => service.ledger.report_of(&run.id).await.map_err(internal)?,
            false => None,
        };
        let record = if content {
            service.whole_record(run, row.created_ms, report.as_ref()).await
        } else {
            let mut record = records::run_head(run, row.created_ms);
            if let Some(message) = report.as_ref().and_then(records::result_message) {
                records::add_report(&mut record, &message);
            }
            record.stdout.clear();
            record.stderr.clear();
            record.result = None;
            record
        };
        size += record.stdout.len() + record.stderr.len() + 1024;
        size += record.result.as_ref().map_or(0, |r| r.get().len());
        size += record.artifacts.iter().map(|a| a.name.len() + a.path.len() + 256).sum::<usize>();
        page.runs.push(record);
    }
    Ok(page)
}

async fn log(
    service: &Service,
    run: &RunId,
    stream: &str,
    offset: u64,
) -> Result<(LogPart, Vec<u8>), ApiError> {
    let row = service.ledger.run(run).await.map_err(internal)?;
    let not_found =
        || ApiError { code: ErrorCode::NotFound, message: format!("there is no run {run}"), hint: None };
    let row = row.ok_or_else(not_found)?;
    let stream = stream.parse::<Stream>().ok().filter(|s| *s != Stream::Result);
    let stream = stream.ok_or_else(|| usage("a stream is stdout, stderr or artifact-N".into(), None))?;
    let ended = row.state.is_end();
    let report = if ended { service.ledger.report_of(run).await.map_err(internal)? } else { None };
    let message = report.as_ref().and_then(records::result_message);
    let end = message.as_ref().and_then(|m| match stream {
        Stream::Stdout => Some(&m.stdout),
        Stream::Stderr => Some(&m.stderr),
        Stream::Result | Stream::Artifact(_) => None,
    });
    let dropped = end.map_or(0, |e| e.dropped);
    if let Some(bytes) = end.and_then(|e| e.inline_bytes()) {
        let at = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let to = at.saturating_add(LOG_PART).min(bytes.len());
        let stored = bytes.len() as u64;
        return Ok((LogPart { offset: at as u64, stored, ended, dropped }, bytes[at..to].to_vec()));
    }
    let key = LogKey { run: run.clone(), attempt: row.attempt, stream };
    let part = service.logs.read(&key, offset, LOG_PART).await.map_err(internal)?;
    Ok(match part {
        Some(part) => {
            (LogPart { offset: part.offset, stored: part.status.stored, ended, dropped }, part.bytes)
        }
        None => (LogPart { offset, stored: 0, ended, dropped }, Vec::new()),
    })
}

async fn order(service: &Service, id: &JobId) -> Result<OrderText, ApiError> {
    let job = job_of(service, id).await?;
    let order = service.ledger.order_of(&job.id).await.map_err(internal)?;
    let order = order.and_then(|(order, signatures)| {
        Some((String::from_utf8(order).ok()?, serde_json::from_str(&signatures).ok()?))
    });
    let Some((order, signatures)) = order else {
        return Err(ApiError {
            code: ErrorCode::NotFound,
            message: format!("the order of job {} is not on record", job.id),
            hint: Some("a job that was recovered from what agents held has none".into()),
        });
    };
    let lane = if job.direct { Lane::Direct } else { Lane::Queue };
    Ok(OrderText { order, signatures, offline: job.offline, priority: job.priority, lane })
}

async fn cancel(service: &Service, id: &str, hard: bool) -> Result<Cancelled, ApiError> {
    let job = find(service, id).await?;
    let cancellation = service.ledger.cancel(&job.id, now_ms(), hard).await.map_err(internal)?;
    let Some(cancellation) = cancellation else { return Err(internal("the job has gone")) };
    Ok(tell_cancelled(service, &cancellation).await)
}

async fn tell_cancelled(service: &Service, cancellation: &Cancellation) -> Cancelled {
    service.send_cancels(&cancellation.tell).await;
    for run in &cancellation.cancelled {
        let record = records::run_head(run, cancellation.job.created_ms);
        service.tell_run(&cancellation.job.id, record, true, None).await;
    }
    let record: JobRecord = records::job(&cancellation.job);
    if cancellation.job_ended {
        service.tell_ended(record.clone()).await;
    }
    let told = cancellation.tell.iter().filter(|r| !r.state.is_end()).count();
    let meant = told + cancellation.cancelled.len();
    Cancelled { job: record, runs: meant as u64 }
}

//! What agents say: checked, recorded, receipted.

use sally_common::clock::now_ms;
use sally_common::id::Digest;
use sally_common::key::{PublicKey, Signature};
use sally_common::limit::{BLOB_CHUNK, RESULT_MESSAGE_MAX, SMALL_MESSAGE_MAX};
use sally_common::name::{Agent, Zone};
use sally_common::subject::Channel;
use sally_common::wire::command::{Answer, Chunk, Receipt, RunAttempt, Stored, To};
use sally_common::wire::report::{Ask, From, Heartbeat, News, Question, ResultMessage, State};
use sally_common::wire::{self, Envelope, HEADER_SIGNATURE, Kind, Refusal, VERSION, join_head};

use super::{Service, records};
use crate::ledger::{
    AgentSeen, Change, LedgerError, Noted, ProgressMark, Refused, Report, ReportKind, Seen, Settled,
    Settlement, StartMark,
};
use crate::store::{Finished, LogKey, StoreError, Stream};

/// Runs looked at for one question. An agent that has more waiting asks again.
const WAITING_READ: u32 = 600;
/// Cancellations told for one question.
const CANCELS_READ: u32 = 1_000;
/// Chunks that one question may bring, whatever it says.
const CHUNKS_MAX: u32 = 64;

/// A message that its agent signed.
struct Signed<'a> {
    zone: Zone,
    agent: Agent,
    key: PublicKey,
    message: &'a async_nats::Message,
}

/// Why a message had no effect.
enum Problem {
    Refused(Refusal),
    Ledger(LedgerError),
    Store(StoreError),
}

impl std::convert::From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Problem::Refused(refusal)
    }
}

impl std::convert::From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        Problem::Ledger(error)
    }
}

impl std::convert::From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Problem::Store(error)
    }
}

/// Takes one message from an agent's subject.
pub async fn receive(service: &Service, channel: Channel, message: &async_nats::Message) {
    match handle(service, channel, message).await {
        Ok(()) => {}
        Err(Problem::Refused(refusal)) => {
            tracing::warn!(subject = %message.subject, reason = %refusal.code(), "refused a message");
        }
        // The agent says it again: it has no receipt.
        Err(Problem::Ledger(error)) => tracing::error!(subject = %message.subject, %error, "cannot record"),
        Err(Problem::Store(error)) => tracing::error!(subject = %message.subject, %error, "cannot store"),
    }
}

async fn handle(service: &Service, channel: Channel, message: &async_nats::Message) -> Result<(), Problem> {
    let (kind, max) = match channel {
        Channel::Result => (Kind::Result, RESULT_MESSAGE_MAX),
        Channel::State => (Kind::State, SMALL_MESSAGE_MAX),
        Channel::Heartbeat => (Kind::Heartbeat, SMALL_MESSAGE_MAX),
        Channel::Ask => (Kind::Ask, SMALL_MESSAGE_MAX),
        Channel::Task | Channel::Live | Channel::Log => return Err(Refusal::WrongKind.into()),
    };
    let (zone, agent) = service.prefix.parse(channel, &message.subject).ok_or(Refusal::Misdirected)?;
    let known = service.fleet().key(&zone, &agent).ok_or(Refusal::UnknownKey)?;
    let key = wire::verify(kind, message.headers.as_ref(), &message.payload, max, |k| *k == known)?;
    let signed = Signed { zone, agent, key, message };
    match channel {
        Channel::Result => result(service, signed).await,
        Channel::State => state(service, signed).await,
        Channel::Heartbeat => heartbeat(service, signed).await,
        _ => ask(service, signed).await,
    }
}

impl Signed<'_> {
    /// Whether the sender inside is the one whose subject it came on.
    fn is_from(&self, from: &From) -> Result<(), Refusal> {
        if from.zone == self.zone && from.agent == self.agent { Ok(()) } else { Err(Refusal::Misdirected) }
    }

    fn report(&self, kind: ReportKind) -> Result<Report, Refusal> {
        let signature = self.message.headers.as_ref().and_then(|h| h.get(HEADER_SIGNATURE));
        let signature: Signature =
            signature.and_then(|s| s.as_str().parse().ok()).ok_or(Refusal::BadSignature)?;
        Ok(Report { kind, body: self.message.payload.to_vec(), key: self.key.clone(), signature })
    }

    fn to(&self, from: &From) -> To {
        To {
            zone: self.zone.clone(),
            agent: self.agent.clone(),
            agent_key: self.key.clone(),
            incarnation: from.incarnation,
        }
    }
}

async fn result(service: &Service, signed: Signed<'_>) -> Result<(), Problem> {
    let message: ResultMessage = wire::read(&signed.message.payload)?;
    signed.is_from(&message.from)?;
    if !message.state.is_end() {
        return Err(Refusal::Malformed.into());
    }
    // Output that rides inside must be what the message says it is.
    for end in [&message.stdout, &message.stderr] {
        if end.inline.is_some() && end.inline_bytes().is_none() {
            return Err(Refusal::WrongDigest.into());
        }
    }
    if !streams_are_whole(service, &signed, &message).await? {
        return Ok(());
    }
    let settlement = Settlement {
        run: message.run.clone(),
        attempt: message.attempt,
        agent_key: signed.key.clone(),
        incarnation: message.from.incarnation,
        state: message.state,
        exit_code: message.exit_code,
        signal: message.signal,
        reason: message.reason.clone(),
        message: message.message.clone(),
        started_ms: message.started_ms,
        finished_ms: message.finished_ms,
        duration_ms: message.duration_ms,
        result_state: Some(message.result_state),
        report: signed.report(ReportKind::Result)?,
        at_ms: now_ms(),
    };
    sally_common::fail::point("controller.result.before-commit");
    let settled = service.ledger.settle(settlement).await?;
    sally_common::fail::point("controller.result.after-commit");
    // Whoever waits for the end hears of it first; the agent can wait for its receipt.
    if let Settled::Committed(change) = &settled {
        service.output.forget(&message.run);
        tell(service, change, Some(&message)).await;
        tokio::task::yield_now().await;
    }
    if matches!(settled, Settled::NotIts) {
        return Err(Refusal::Misdirected.into());
    }
    if matches!(settled, Settled::Committed(_) | Settled::Duplicate { .. } | Settled::Stale { .. }) {
        let stored = Stored::Result { digest: Digest::of(&signed.message.payload) };
        sally_common::fail::point("controller.receipt.before");
        receipt(service, signed.to(&message.from), message.run.clone(), message.attempt, stored).await;
        sally_common::fail::point("controller.receipt.after");
    }
    Ok(())
}

/// Whether every stream that the result announces is stored and is what it announces. What is missing is
/// asked for.
async fn streams_are_whole(
    service: &Service,
    signed: &Signed<'_>,
    message: &ResultMessage,
) -> Result<bool, Problem> {
    let streams = [
        (Stream::Stdout, Some(&message.stdout)),
        (Stream::Stderr, Some(&message.stderr)),
        (Stream::Result, message.result_stream.as_ref()),
    ];
    let mut whole = true;
    for (stream, end) in streams {
        let Some(end) = end.filter(|e| e.inline.is_none() && e.bytes > 0) else { continue };
        let key = LogKey { run: message.run.clone(), attempt: message.attempt, stream };
        let wanted = match service.logs.finish(&key, end.bytes, end.digest).await {
            Ok(Finished::Whole) => continue,
            Ok(Finished::Missing { wanted }) => wanted,
            // Not what was announced: it was set aside, and is wanted from the start.
            Err(StoreError::WrongDigest { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        whole = false;
        let stored = Stored::Stream { stream: stream.word().to_owned(), bytes: wanted };
        receipt(service, signed.to(&message.from), message.run.clone(), message.attempt, stored).await;
    }
    Ok(whole)
}

/// Sends a receipt to the agent's live subject.
pub async fn receipt(service: &Service, to: To, run: sally_common::id::RunId, attempt: u32, stored: Stored) {
    let subject = service.prefix.agent(Channel::Live, &to.zone, &to.agent);
    let receipt = Receipt { v: VERSION, to, run, attempt, stored };
    service.publish(subject, Envelope::seal(Kind::Receipt, &service.key, &receipt)).await;
}

/// Tells watchers of a change.
pub async fn tell(service: &Service, change: &Change, message: Option<&ResultMessage>) {
    let mut record = records::run_head(&change.run, change.job.created_ms);
    let whole = message.is_none_or(|m| records::add_report(&mut record, m));
    let ended = change.job_ended.then(|| records::job(&change.job));
    service.tell_run(&change.job.id, record, whole, ended).await;
}

async fn state(service: &Service, signed: Signed<'_>) -> Result<(), Problem> {
    let state: State = wire::read(&signed.message.payload)?;
    signed.is_from(&state.from)?;
    let (run, attempt, agent_key) = (state.run.clone(), state.attempt, signed.key.clone());
    let incarnation = state.from.incarnation;
    service.fleet_heard(&signed.zone, &signed.agent);
    let noted = match state.news {
        News::Accepted | News::Deferred { .. } | News::Ended { .. } | News::Other => return Ok(()),
        News::Started { started_ms } => {
            sally_common::fail::point("controller.started.before-commit");
            service.ledger.started(StartMark { run, attempt, agent_key, incarnation, started_ms }).await?
        }
        News::Progress { progress } => {
            let json = serde_json::to_string(&progress).unwrap_or_default();
            service.ledger.progress(ProgressMark { run, attempt, agent_key, json }).await?
        }
        News::Refused { reason, message } => {
            let report = signed.report(ReportKind::State)?;
            let reason = reason.code();
            let refused =
                Refused { run, attempt, agent_key, incarnation, reason, message, report, at_ms: now_ms() };
            match service.ledger.refuse(refused).await? {
                Settled::Committed(change) => tell(service, &change, None).await,
                Settled::NotIts => return Err(Refusal::Misdirected.into()),
                Settled::Duplicate { .. } | Settled::Stale { .. } | Settled::Unknown => {}
            }
            return Ok(());
        }
    };
    match noted {
        Noted::Changed(change) => tell(service, &change, None).await,
        Noted::NotIts => return Err(Refusal::Misdirected.into()),
        Noted::Same | Noted::Stale | Noted::Unknown => {}
    }
    Ok(())
}

async fn heartbeat(service: &Service, signed: Signed<'_>) -> Result<(), Problem> {
    let beat: Heartbeat = wire::read(&signed.message.payload)?;
    signed.is_from(&beat.from)?;
    let seen_ms = now_ms();
    let seen = AgentSeen {
        zone: signed.zone.clone(),
        name: signed.agent.clone(),
        agent_key: signed.key.clone(),
        incarnation: beat.from.incarnation,
        counter: beat.from.counter,
        labels: beat.labels.clone(),
        heartbeat: String::from_utf8_lossy(&signed.message.payload).into_owned(),
        seen_ms,
    };
    let answer = service.ledger.upsert_agents(vec![seen]).await?.into_iter().next();
    match answer {
        Some(Seen::Stale | Seen::OtherKey) | None => return Ok(()),
        Some(Seen::NewIncarnation { .. }) => lost_journal(service, &signed, beat.from.incarnation).await?,
        Some(Seen::New | Seen::Updated) => {}
    }
    let was_offline = {
        let mut fleet = service.fleet();
        let Some(member) = fleet.get_mut(&signed.zone, &signed.agent) else { return Ok(()) };
        let was_offline = member.state(seen_ms) == sally_common::wire::record::AgentState::Offline;
        member.incarnation = Some(beat.from.incarnation);
        member.counter = beat.from.counter;
        member.seen_ms = Some(seen_ms);
        member.heartbeat = Some(beat);
        was_offline
    };
    if was_offline {
        tracing::info!(agent = %signed.agent, zone = %signed.zone, "an agent is there");
    }
    Ok(())
}

async fn lost_journal(
    service: &Service,
    signed: &Signed<'_>,
    incarnation: sally_common::id::Incarnation,
) -> Result<(), Problem> {
    loop {
        let lost = service.ledger.lost_journal(&signed.zone, &signed.agent, incarnation, now_ms()).await?;
        for change in &lost.changes {
            tell(service, change, None).await;
        }
        if !lost.more {
            return Ok(());
        }
    }
}

async fn ask(service: &Service, signed: Signed<'_>) -> Result<(), Problem> {
    let ask: Ask = wire::read(&signed.message.payload)?;
    signed.is_from(&ask.from)?;
    let to = signed.to(&ask.from);
    match ask.question {
        Question::Work { credit, boot, ref held, .. } => {
            work(service, &signed, &ask, to, credit, boot, held).await
        }
        Question::Blob { ref run, digest, offset, chunks } => {
            blob(service, &signed, to, run, digest, offset, chunks).await
        }
        Question::Other => Ok(()),
    }
}

async fn work(
    service: &Service,
    signed: &Signed<'_>,
    ask: &Ask,
    to: To,
    credit: u32,
    boot: bool,
    held: &[RunAttempt],
) -> Result<(), Problem> {
    let before = service.fleet().get(&signed.zone, &signed.agent).map(|m| (m.incarnation, m.counter));
    let (incarnation, counter) = before.unwrap_or((None, 0));
    if boot && incarnation == Some(ask.from.incarnation) && ask.from.counter < counter {
        // Questions and heartbeats may overtake each other by a few, a restored copy is far behind.
        tracing::error!(agent = %signed.agent, zone = %signed.zone, "its journal is an old copy");
        let message = "the journal is older than what this agent has reported: it was restored from a copy; \
                       move it away, then the agent starts as a new incarnation";
        return answer(service, to, ask, Some(message), 0).await;
    }
    if incarnation != Some(ask.from.incarnation) {
        lost_journal(service, signed, ask.from.incarnation).await?;
        if let Some(member) = service.fleet().get_mut(&signed.zone, &signed.agent) {
            member.incarnation = Some(ask.from.incarnation);
        }
    }
    service.fleet_heard(&signed.zone, &signed.agent);
    let cancels = service.ledger.to_cancel(&signed.zone, &signed.agent, CANCELS_READ).await?;
    service.send_cancels(&cancels).await;
    let waiting = service.ledger.waiting_for(&signed.zone, &signed.agent, WAITING_READ).await?;
    let holds =
        |run: &crate::ledger::Run| held.iter().any(|h| h.run == run.id && h.attempt >= run.attempt.max(1));
    let due: Vec<_> = waiting.into_iter().filter(|run| !holds(run)).collect();
    let now = due.len().min(credit as usize);
    sally_common::fail::point("controller.ask.before-answer");
    service.dispatch_to(&to, &due[..now]).await?;
    answer(service, to, ask, None, (due.len() - now) as u64).await
}

async fn answer(
    service: &Service,
    to: To,
    ask: &Ask,
    message: Option<&str>,
    waiting: u64,
) -> Result<(), Problem> {
    let subject = service.prefix.agent(Channel::Live, &to.zone, &to.agent);
    let answer = Answer {
        v: VERSION,
        to,
        nonce: ask.nonce,
        now_ms: now_ms(),
        welcome: message.is_none(),
        message: message.map(str::to_owned),
        waiting,
        renew: false,
    };
    service.publish(subject, Envelope::seal(Kind::Answer, &service.key, &answer)).await;
    Ok(())
}

/// Answers with pieces of a blob: an order of a run of this agent, or content that the order names.
async fn blob(
    service: &Service,
    signed: &Signed<'_>,
    to: To,
    run: &sally_common::id::RunId,
    digest: Digest,
    offset: u64,
    chunks: u32,
) -> Result<(), Problem> {
    let subject = service.prefix.agent(Channel::Live, &to.zone, &to.agent);
    let mine = service.ledger.run(run).await?.is_some_and(|r| r.agent_key == signed.key);
    let order = if mine { service.ledger.order_of(run.job()).await? } else { None };
    let Some((order, _)) = order else { return Err(Refusal::Misdirected.into()) };
    let is_order = Digest::of(&order) == digest;
    let is_named =
        wire::read::<wire::order::Order>(&order).is_ok_and(|o| o.blobs().any(|c| c.digest == digest));
    for n in 0..u64::from(chunks.min(CHUNKS_MAX)) {
        let at = offset + n * BLOB_CHUNK as u64;
        let (bytes, total) = if is_order {
            let rest = usize::try_from(at).ok().and_then(|at| order.get(at..)).unwrap_or_default();
            (rest[..rest.len().min(BLOB_CHUNK)].to_vec(), order.len() as u64)
        } else if is_named {
            match service.blobs.read(digest, at, BLOB_CHUNK).await? {
                Some(part) => (part.bytes, part.total),
                None => (Vec::new(), 0),
            }
        } else {
            (Vec::new(), 0)
        };
        if bytes.is_empty() && total > 0 {
            break;
        }
        let head = Chunk { v: VERSION, to: to.clone(), digest, offset: at, total };
        let body = join_head(&head, &bytes);
        service.publish(subject.clone(), Envelope::seal_bytes(Kind::Chunk, &service.key, body)).await;
        if total == 0 {
            break;
        }
    }
    Ok(())
}

impl Service {
    /// Notes that an agent has just said something signed.
    pub fn fleet_heard(&self, zone: &Zone, agent: &Agent) {
        if let Some(member) = self.fleet().get_mut(zone, agent) {
            member.seen_ms = Some(now_ms());
        }
    }
}

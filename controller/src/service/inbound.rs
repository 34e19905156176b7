//! What agents say: checked, recorded, receipted.

use sally_common::clock::{now_ms, steady_ms};
use sally_common::id::{Digest, Nonce};
use sally_common::key::{PublicKey, Signature};
use sally_common::limit::{BLOB_CHUNK, RESULT_MESSAGE_MAX, SMALL_MESSAGE_MAX};
use sally_common::name::{Agent, Zone};
use sally_common::subject::Channel;
use sally_common::wire::artifact::artifact_ends;
use sally_common::wire::command::{Answer, Chunk, Receipt, RunAttempt, Stored, To};
use sally_common::wire::record::{AgentState, RunState};
use sally_common::wire::report::{Ask, From, Heartbeat, News, Question, ResultMessage, State};
use sally_common::wire::{self, Envelope, HEADER_SIGNATURE, Kind, Refusal, VERSION, join_head};

use super::fleet::{Member, TWO_PROCESSES};
use super::presence::Verdict;
use super::{Service, records};
use crate::ledger::{
    AgentSeen, Change, LedgerError, Noted, ProgressMark, Recovered, Refused, Report, ReportKind, Run, Seen,
    Settled, Settlement, StartMark, jitter,
};
use crate::store::{Finished, LogKey, StoreError, Stream};

/// Runs looked at for one question. An agent that has more waiting asks again.
const WAITING_READ: u32 = 1_024;
/// Runs in doubt that are asked about for one question.
const DOUBTS_READ: u32 = 100;
/// What was dispatched later than this before a question may have crossed it on its way.
const DOUBT_AFTER_MS: i64 = 2_000;
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

    /// The same, and notes what the sender says of its journal.
    fn hear(&self, service: &Service, from: &From) -> Result<(), Refusal> {
        self.is_from(from)?;
        if let Some(member) = service.fleet().get_mut(&self.zone, &self.agent) {
            member.heard_journal(from);
        }
        Ok(())
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
    signed.hear(service, &message.from)?;
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
        retryable: message.failure.as_ref().map(|f| f.retryable),
        jitter: jitter(),
        report: signed.report(ReportKind::Result)?,
        at_ms: now_ms(),
    };
    sally_common::fail::point("controller.result.before-commit");
    let mut settled = service.ledger.settle(settlement.clone()).await?;
    if matches!(settled, Settled::Unknown) {
        // The ledger was lost, or is an older copy: what its agent still holds comes back.
        let held = RunAttempt { run: message.run.clone(), attempt: message.attempt };
        if recover(service, &signed, &message.from, &[held]).await? {
            settled = service.ledger.settle(settlement).await?;
        }
    }
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
    let mut whole = true;
    for (stream, bytes, digest) in announced(message)? {
        let key = LogKey { run: message.run.clone(), attempt: message.attempt, stream };
        let wanted = match service.logs.finish(&key, bytes, digest).await {
            Ok(Finished::Whole) => continue,
            Ok(Finished::Missing { wanted }) => wanted,
            // Not what was announced: it was set aside, and is wanted from the start.
            Err(StoreError::WrongDigest { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        whole = false;
        let stored = Stored::Stream { stream: stream.to_string(), bytes: wanted };
        receipt(service, signed.to(&message.from), message.run.clone(), message.attempt, stored).await;
    }
    Ok(whole)
}

/// The streams that a result announces without carrying them, each with length and digest.
fn announced(message: &ResultMessage) -> Result<Vec<(Stream, u64, Digest)>, Refusal> {
    let output = [
        (Stream::Stdout, Some(&message.stdout)),
        (Stream::Stderr, Some(&message.stderr)),
        (Stream::Result, message.result_stream.as_ref()),
    ];
    let output = output.into_iter().filter_map(|(stream, end)| {
        let end = end.filter(|e| e.inline.is_none())?;
        Some((stream, end.bytes, end.digest))
    });
    let files = artifact_ends(&message.artifacts)?;
    let files = files.into_iter().map(|end| (Stream::Artifact(end.number), end.bytes, end.digest));
    Ok(output.chain(files).filter(|(_, bytes, _)| *bytes > 0).collect())
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
    // What an attempt said that is followed by another one is not the run's last word.
    let message = message.filter(|_| change.run.state.is_end());
    let whole = message.is_none_or(|m| records::add_report(&mut record, m));
    let ended = change.job_ended.then(|| records::job(&change.job));
    service.tell_run(&change.job.id, record, whole, ended).await;
}

async fn state(service: &Service, signed: Signed<'_>) -> Result<(), Problem> {
    let state: State = wire::read(&signed.message.payload)?;
    signed.hear(service, &state.from)?;
    let (run, attempt, agent_key) = (state.run.clone(), state.attempt, signed.key.clone());
    let incarnation = state.from.incarnation;
    service.fleet_heard(&signed.zone, &signed.agent);
    let noted = match state.news.clone() {
        News::Accepted | News::Other => return Ok(()),
        News::Deferred { reason, message } => {
            return deferred(service, &signed, &state, reason, message).await;
        }
        News::Ended { attempt, state: end, exit_code, finished_ms, .. } => {
            return ended(service, &signed, &state, attempt, end, exit_code, finished_ms).await;
        }
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

/// What waits in the queue is said again; the direct lane waits for nobody.
async fn deferred(
    service: &Service,
    signed: &Signed<'_>,
    state: &State,
    reason: Refusal,
    message: Option<String>,
) -> Result<(), Problem> {
    let run = service.ledger.run(&state.run).await?;
    if !run.is_some_and(|r| r.direct && r.attempt == state.attempt && r.agent_key == signed.key) {
        return Ok(());
    }
    let refused = Refused {
        run: state.run.clone(),
        attempt: state.attempt,
        agent_key: signed.key.clone(),
        incarnation: state.from.incarnation,
        reason: reason.code(),
        message: message.unwrap_or_else(|| reason.to_string()),
        report: signed.report(ReportKind::State)?,
        at_ms: now_ms(),
    };
    if let Settled::Committed(change) = service.ledger.refuse(refused).await? {
        tell(service, &change, None).await;
    }
    Ok(())
}

/// What a journal remembers of a run whose result another ledger receipted.
async fn ended(
    service: &Service,
    signed: &Signed<'_>,
    state: &State,
    attempt: u32,
    end: RunState,
    exit_code: Option<i32>,
    finished_ms: i64,
) -> Result<(), Problem> {
    if !end.is_end() {
        return Err(Refusal::Malformed.into());
    }
    let message = "the result was receipted by another ledger than this one; only how it ended is known";
    let settlement = Settlement {
        run: state.run.clone(),
        attempt,
        agent_key: signed.key.clone(),
        incarnation: state.from.incarnation,
        state: end,
        exit_code,
        signal: None,
        reason: Some("result-lost".into()),
        message: Some(message.into()),
        // It did start, when is forgotten.
        started_ms: Some(finished_ms).filter(|_| !matches!(end, RunState::Rejected | RunState::Expired)),
        finished_ms,
        duration_ms: None,
        result_state: None,
        retryable: None,
        jitter: jitter(),
        report: signed.report(ReportKind::State)?,
        at_ms: now_ms(),
    };
    match service.ledger.settle(settlement).await? {
        Settled::Committed(change) => tell(service, &change, None).await,
        Settled::NotIts => return Err(Refusal::Misdirected.into()),
        Settled::Duplicate { .. } | Settled::Stale { .. } | Settled::Unknown => {}
    }
    Ok(())
}

/// Makes records for runs that an agent holds and the ledger does not know.
async fn recover(
    service: &Service,
    signed: &Signed<'_>,
    from: &From,
    held: &[RunAttempt],
) -> Result<bool, Problem> {
    let found = held.iter().filter(|h| h.attempt > 0).map(|h| Recovered {
        run: h.run.clone(),
        attempt: h.attempt,
        zone: signed.zone.clone(),
        agent: signed.agent.clone(),
        agent_key: signed.key.clone(),
        incarnation: from.incarnation,
        at_ms: now_ms(),
    });
    let found: Vec<Recovered> = found.collect();
    if found.is_empty() {
        return Ok(false);
    }
    let known = service.ledger.recover(found).await?;
    if known.contains(&false) {
        tracing::warn!(agent = %signed.agent, zone = %signed.zone, "holds runs that are not on record and not taken up");
    }
    Ok(known.contains(&true))
}

async fn heartbeat(service: &Service, signed: Signed<'_>) -> Result<(), Problem> {
    let beat: Heartbeat = wire::read(&signed.message.payload)?;
    signed.hear(service, &beat.from)?;
    let heard_ms = steady_ms();
    if let Some(nonce) = beat.probe {
        service.answered(&signed.zone, &signed.agent, nonce, beat.sent_ms);
    }
    presence(service, &signed, &beat.from, beat.instance, beat.goodbye.is_some(), heard_ms).await;
    let journal = service.fleet().get(&signed.zone, &signed.agent).map_or(0, |m| m.journal_of(&beat.from));
    let seen = AgentSeen {
        zone: signed.zone.clone(),
        name: signed.agent.clone(),
        agent_key: signed.key.clone(),
        incarnation: beat.from.incarnation,
        counter: beat.from.counter,
        labels: beat.labels.clone(),
        heartbeat: String::from_utf8_lossy(&signed.message.payload).into_owned(),
        seen_ms: now_ms(),
        journal,
    };
    let answer = service.ledger.upsert_agents(vec![seen]).await?.into_iter().next();
    match answer {
        Some(Seen::Stale | Seen::OtherKey) | None => return Ok(()),
        // What the old journal held is settled when the new one has said what it holds: at its question.
        Some(Seen::New | Seen::Updated | Seen::NewIncarnation { .. }) => {}
    }
    let greeted = service.fleet().get(&signed.zone, &signed.agent).is_some_and(|m| m.greeted);
    if !greeted {
        // Its slots may be full, so that it does not ask.
        recover(service, &signed, &beat.from, &beat.running).await?;
    }
    let was_offline = {
        let mut fleet = service.fleet();
        let Some(member) = fleet.get_mut(&signed.zone, &signed.agent) else { return Ok(()) };
        let was_offline = member.state(heard_ms) == AgentState::Offline;
        member.is_now(&beat.from);
        member.seen_ms = Some(heard_ms);
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
    held: &[RunAttempt],
) -> Result<(), Problem> {
    loop {
        let lost =
            service.ledger.lost_journal(&signed.zone, &signed.agent, incarnation, held, now_ms()).await?;
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
    signed.hear(service, &ask.from)?;
    let to = signed.to(&ask.from);
    match ask.question {
        Question::Work { .. } => work(service, &signed, &ask, to).await,
        Question::Blob { ref run, digest, offset, chunks } => {
            blob(service, &signed, to, run, digest, offset, chunks).await
        }
        Question::Other => Ok(()),
    }
}

/// Notes which process speaks, and probes where there may be two.
async fn presence(
    service: &Service,
    signed: &Signed<'_>,
    from: &From,
    instance: Option<Nonce>,
    goodbye: bool,
    now: i64,
) -> Verdict {
    let (were_two, verdict) = {
        let mut fleet = service.fleet();
        let member = fleet.get_mut(&signed.zone, &signed.agent);
        let Some((member, instance)) = member.zip(instance) else { return Verdict::Welcome };
        let gone = member.state(now) == AgentState::Offline;
        member.speaks(instance, from.incarnation);
        let were_two = member.presence.is_two(now);
        let verdict = member.presence.hear(instance, goodbye, gone, now);
        if verdict != Verdict::Welcome {
            member.is_at_the_door(from.incarnation, now);
        }
        (were_two, verdict)
    };
    match verdict {
        Verdict::Probe => service.send_probe(signed.to(from), Nonce::generate()).await,
        Verdict::Two if !were_two => {
            tracing::error!(agent = %signed.agent, zone = %signed.zone, "{TWO_PROCESSES}");
        }
        Verdict::Welcome | Verdict::Wait | Verdict::Two => {}
    }
    verdict
}

/// Answers a question for work: first what it must not start, then what is in doubt, then what waits.
async fn work(service: &Service, signed: &Signed<'_>, ask: &Ask, to: To) -> Result<(), Problem> {
    let Question::Work { credit, boot, ref held, instance, held_is_all } = ask.question else {
        return Ok(());
    };
    match presence(service, signed, &ask.from, instance, false, steady_ms()).await {
        Verdict::Welcome => {}
        // Another process may speak for this agent: it asks again in a moment.
        Verdict::Probe | Verdict::Wait => return Ok(()),
        Verdict::Two => return answer(service, to, ask, No::Refused(TWO_PROCESSES), Work::default()).await,
    }
    let (before, is_old_copy, greeted, drained, left) = {
        let fleet = service.fleet();
        let member = fleet.get(&signed.zone, &signed.agent);
        let say =
            |m: &Member| (m.incarnation, m.is_old_copy(&ask.from, instance), m.greeted, m.drained, m.left());
        member.map_or((None, false, false, false, 0), say)
    };
    if boot && is_old_copy {
        tracing::error!(agent = %signed.agent, zone = %signed.zone, "its journal is an old copy");
        let message = "the journal is older than what this agent has reported: it was restored from a copy";
        return answer(service, to, ask, No::Renew(message), Work::default()).await;
    }
    if boot || before != Some(ask.from.incarnation) {
        lost_journal(service, signed, ask.from.incarnation, held).await?;
    }
    if let Some(member) = service.fleet().get_mut(&signed.zone, &signed.agent) {
        member.is_now(&ask.from);
        member.is_welcome(instance);
        member.seen_ms = Some(steady_ms());
    }
    if boot || !greeted {
        recover(service, signed, &ask.from, held).await?;
    }
    let cancels = service.ledger.to_cancel(&signed.zone, &signed.agent, CANCELS_READ).await?;
    service.send_cancels(&cancels).await;
    let holds = |run: &Run| held.iter().any(|h| h.run == run.id && h.attempt >= run.attempt.max(1));
    if held_is_all {
        let before = now_ms() - DOUBT_AFTER_MS;
        let (zone, agent) = (&signed.zone, &signed.agent);
        let doubt = service.ledger.in_doubt(zone, agent, ask.from.incarnation, before, DOUBTS_READ).await?;
        let doubt: Vec<_> = doubt.into_iter().filter(|run| !holds(run)).collect();
        service.ask_about(&to, &doubt).await?;
    }
    let due = if drained { Vec::new() } else { due(service, signed, credit, held.len(), &holds).await? };
    let now = due.len().min(credit as usize);
    sally_common::fail::point("controller.ask.before-answer");
    let given = service.dispatch_to(&to, &due[..now], ask.nonce).await? as u64;
    let mut waiting = (due.len() - now) as u64;
    if let Some(member) = service.fleet().get_mut(&signed.zone, &signed.agent) {
        member.asked(steady_ms());
        if member.read(left, waiting > 0) && !drained {
            waiting = waiting.max(1);
        }
    }
    answer(service, to, ask, No::Problem, Work { given, waiting }).await
}

/// What waits for an agent and is not held by it: at least one more than it has room for, if there is.
async fn due(
    service: &Service,
    signed: &Signed<'_>,
    credit: u32,
    held: usize,
    holds: &impl Fn(&Run) -> bool,
) -> Result<Vec<Run>, Problem> {
    let wanted = u32::try_from(held).unwrap_or(u32::MAX).saturating_add(credit).saturating_add(1);
    // Few different numbers: each has a statement of its own.
    let limit = wanted.clamp(8, WAITING_READ).next_power_of_two();
    let waiting = service.ledger.waiting_for(&signed.zone, &signed.agent, limit).await?;
    Ok(waiting.into_iter().filter(|run| !holds(run)).collect())
}

/// Whether an answer is no welcome.
enum No {
    /// It is one.
    Problem,
    /// Not now, and why.
    Refused(&'static str),
    /// Not as this incarnation, and why.
    Renew(&'static str),
}

/// What an answer says of an agent's work.
#[derive(Default)]
struct Work {
    /// Dispatches sent with it.
    given: u64,
    /// How many more wait.
    waiting: u64,
}

async fn answer(service: &Service, to: To, ask: &Ask, no: No, work: Work) -> Result<(), Problem> {
    let (message, renew) = match no {
        No::Problem => (None, false),
        No::Refused(message) => (Some(message), false),
        No::Renew(message) => (Some(message), true),
    };
    let subject = service.prefix.agent(Channel::Live, &to.zone, &to.agent);
    let answer = Answer {
        v: VERSION,
        to,
        nonce: ask.nonce,
        now_ms: now_ms(),
        welcome: message.is_none(),
        message: message.map(str::to_owned),
        waiting: work.waiting,
        given: work.given,
        renew,
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
            member.seen_ms = Some(steady_ms());
        }
    }
}

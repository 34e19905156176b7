//! Questions: for work, whose answer is the welcome, and for pieces of blobs.

use sally_common::clock::{now_ms, steady_ms};
use sally_common::id::{Digest, RunId};
use sally_common::limit::BLOB_CHUNK;
use sally_common::subject::Channel;
use sally_common::wire::command::{Answer, Chunk, To};
use sally_common::wire::report::{Ask, Question};
use sally_common::wire::{self, Envelope, Kind, Refusal, VERSION, join_head};

use super::heartbeats::{lost_journal, presence, recover};
use super::{Problem, Service, Signed};
use crate::ledger::Run;
use crate::service::fleet::{Member, TWO_PROCESSES};
use crate::service::presence::Verdict;

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

pub(super) async fn ask(service: &Service, signed: Signed<'_>) -> Result<(), Problem> {
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
    run: &RunId,
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

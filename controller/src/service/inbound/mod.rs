//! What agents say: checked, recorded, receipted. Here what is the same for all of it; `results` how runs ended,
//! `states` how they go on, `heartbeats` which process speaks and what it holds, `asks` questions for work and for blobs.

use sally_common::clock::steady_ms;
use sally_common::key::{PublicKey, Signature};
use sally_common::limit::{RESULT_MESSAGE_MAX, SMALL_MESSAGE_MAX};
use sally_common::name::{Agent, Zone};
use sally_common::subject::Channel;
use sally_common::wire::command::{Receipt, Stored, To};
use sally_common::wire::report::{From, ResultMessage};
use sally_common::wire::{self, Envelope, HEADER_SIGNATURE, Kind, Refusal, VERSION};

use super::{Service, records};
use crate::ledger::{Change, LedgerError, Report, ReportKind};
use crate::store::StoreError;

mod asks;
mod heartbeats;
mod results;
mod states;

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
        Channel::Result => results::result(service, signed).await,
        Channel::State => states::state(service, signed).await,
        Channel::Heartbeat => heartbeats::heartbeat(service, signed).await,
        _ => asks::ask(service, signed).await,
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

impl Service {
    /// Notes that an agent has just said something signed.
    pub fn fleet_heard(&self, zone: &Zone, agent: &Agent) {
        if let Some(member) = self.fleet().get_mut(zone, agent) {
            member.seen_ms = Some(steady_ms());
        }
    }
}

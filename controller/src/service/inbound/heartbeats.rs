//! Heartbeats: which process speaks for an agent, and what it holds that is not on record.

use sally_common::clock::{now_ms, steady_ms};
use sally_common::id::{Incarnation, Nonce};
use sally_common::wire;
use sally_common::wire::command::RunAttempt;
use sally_common::wire::record::AgentState;
use sally_common::wire::report::{From, Heartbeat};

use super::{Problem, Service, Signed, tell};
use crate::ledger::{AgentSeen, Recovered, Seen};
use crate::service::fleet::TWO_PROCESSES;
use crate::service::presence::Verdict;

pub(super) async fn heartbeat(service: &Service, signed: Signed<'_>) -> Result<(), Problem> {
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

/// Notes which process speaks, and probes where there may be two.
pub(super) async fn presence(
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

/// Makes records for runs that an agent holds and the ledger does not know.
pub(super) async fn recover(
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

pub(super) async fn lost_journal(
    service: &Service,
    signed: &Signed<'_>,
    incarnation: Incarnation,
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

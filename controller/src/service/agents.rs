//! What callers ask about agents: what waits for them, and whether they get it; whether they are there.

use std::time::Duration;

use sally_common::clock::{now_ms, steady_ms};
use sally_common::id::{Nonce, RunId};
use sally_common::name::{Agent, User, Zone};
use sally_common::selector::Targets;
use sally_common::subject::Channel;
use sally_common::wire::api::{ApiError, Drained, ErrorCode, Ping, Pinged, Purged, RunPage, Target};
use sally_common::wire::command::{Probe, To};
use sally_common::wire::{Envelope, Kind, VERSION};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::submission::internal;
use super::{Service, inbound, records};
use crate::ledger::{Ledger, LedgerError, Stopped};

/// Runs of a page.
const PAGE: u32 = 500;
/// The longest wait for answers to a ping, milliseconds.
const PING_MAX_MS: u64 = 60_000;
/// Runs that are given up in one go.
const HELD_READ: u32 = 1_000;

/// An agent's answer to a probe.
#[derive(Debug)]
pub struct Pong {
    zone: Zone,
    agent: Agent,
    at: Instant,
    at_ms: i64,
    sent_ms: i64,
}

/// Runs that wait for an agent, in its order, from number `from` on.
pub async fn waiting(
    service: &Service,
    zone: &Zone,
    agent: &Agent,
    from: u32,
    limit: u32,
) -> Result<RunPage, ApiError> {
    known(service, zone, agent)?;
    let limit = limit.clamp(1, PAGE);
    let mut runs = service.ledger.waiting_from(zone, agent, from, limit + 1).await.map_err(internal)?;
    let next = (runs.len() > limit as usize).then(|| from.saturating_add(limit));
    runs.truncate(limit as usize);
    let mut page = RunPage { runs: Vec::with_capacity(runs.len()), next };
    for run in &runs {
        let job = service.ledger.job(run.id.job()).await.map_err(internal)?;
        page.runs.push(records::run_head(run, job.map_or(0, |j| j.created_ms)));
    }
    Ok(page)
}

/// Cancels what waits for these agents.
pub async fn purge(service: &Service, caller: &User, targets: &Targets) -> Result<Purged, ApiError> {
    let agents = resolve(service, targets)?;
    let mut runs = 0;
    for target in &agents {
        runs += stop_waiting(service, &target.zone, &target.agent, "purged", &format!("purged by {caller}"))
            .await?;
    }
    Ok(Purged { runs, agents })
}

async fn stop_waiting(
    service: &Service,
    zone: &Zone,
    agent: &Agent,
    reason: &str,
    message: &str,
) -> Result<u64, ApiError> {
    let mut runs = 0;
    loop {
        let stopped = service.ledger.purge(zone, agent, now_ms(), reason, message).await;
        let stopped = stopped.map_err(internal)?;
        runs += (stopped.changes.len() + stopped.tell.len()) as u64;
        service.tell_stopped(&stopped).await;
        if !stopped.more {
            return Ok(runs);
        }
    }
}

/// Gives these agents no new work, or gives it again.
pub async fn drain(service: &Service, targets: &Targets, drain: bool) -> Result<Drained, ApiError> {
    let agents = resolve(service, targets)?;
    let names: Vec<_> = agents.iter().map(|t| (t.zone.clone(), t.agent.clone())).collect();
    service.ledger.drain(names.clone(), drain.then(now_ms)).await.map_err(internal)?;
    for (zone, agent) in &names {
        if let Some(member) = service.fleet().get_mut(zone, agent) {
            member.drained = drain;
        }
        if !drain {
            service.hint(zone, agent).await.map_err(internal)?;
        }
    }
    Ok(Drained { agents })
}

/// Forgets an agent that will not come back.
pub async fn forget(
    service: &Service,
    caller: &User,
    zone: &Zone,
    agent: &Agent,
) -> Result<Purged, ApiError> {
    let target = known(service, zone, agent)?;
    let runs = end_work(service, caller, zone, agent).await?;
    if let Some(member) = service.fleet().get_mut(zone, agent) {
        member.forget();
    }
    Ok(Purged { runs, agents: vec![target] })
}

/// Ends all work of an agent of which nobody will hear any more, and what is on record of it. Returns how many runs
/// that were.
pub async fn end_work(service: &Service, caller: &User, zone: &Zone, agent: &Agent) -> Result<u64, ApiError> {
    let held = give_up(service, &service.ledger, zone, agent).await.map_err(internal)?;
    let message = format!("its agent was forgotten by {caller}");
    let waiting = stop_waiting(service, zone, agent, "agent-forgotten", &message).await?;
    service.ledger.drain(vec![(zone.clone(), agent.clone())], None).await.map_err(internal)?;
    service.ledger.forget_agent(zone, agent).await.map_err(internal)?;
    Ok(held + waiting)
}

/// What the agent may have: nobody will say how it ended.
async fn give_up(service: &Service, ledger: &Ledger, zone: &Zone, agent: &Agent) -> Result<u64, LedgerError> {
    let held = ledger.held_by(zone, agent, HELD_READ).await?;
    let ids: Vec<RunId> = held.into_iter().filter(|r| !r.state.is_end()).map(|r| r.id).collect();
    let message = "the agent was forgotten; it may have run";
    let changes = ledger.unknown(ids, now_ms(), "agent-forgotten", message).await?;
    for change in &changes {
        inbound::tell(service, change, None).await;
    }
    Ok(changes.len() as u64)
}

/// Probes these agents and waits for their answers.
pub async fn ping(service: &Service, targets: &Targets, wait_ms: u64) -> Result<Pinged, ApiError> {
    let agents = resolve(service, targets)?;
    let nonce = Nonce::generate();
    let (sender, mut pongs) = mpsc::channel(agents.len().max(1));
    service.probes().insert(nonce, sender);
    let begun = Instant::now();
    let until = begun + Duration::from_millis(wait_ms.min(PING_MAX_MS));
    let mut asked = 0;
    for target in &agents {
        asked += usize::from(service.probe(&target.zone, &target.agent, nonce).await);
    }
    let mut answers: Vec<Pong> = Vec::new();
    while answers.len() < asked {
        let Ok(Some(pong)) = timeout_at(until, pongs.recv()).await else { break };
        if !answers.iter().any(|p| p.zone == pong.zone && p.agent == pong.agent) {
            answers.push(pong);
        }
    }
    service.probes().remove(&nonce);
    let agents = agents.into_iter().map(|target| {
        let pong = answers.iter().find(|p| p.zone == target.zone && p.agent == target.agent);
        let rtt_ms = pong.map(|p| (p.at - begun).as_secs_f64() * 1000.0);
        // Half of the way is taken for the way back.
        let skew_ms = pong.zip(rtt_ms).map(|(p, rtt)| p.sent_ms - p.at_ms + (rtt / 2.0) as i64);
        Ping { zone: target.zone, agent: target.agent, rtt_ms, skew_ms }
    });
    Ok(Pinged { agents: agents.collect() })
}

fn resolve(service: &Service, targets: &Targets) -> Result<Vec<Target>, ApiError> {
    let found = service.fleet().resolve(targets, steady_ms())?;
    Ok(found.into_iter().map(|(_, target)| target).collect())
}

fn known(service: &Service, zone: &Zone, agent: &Agent) -> Result<Target, ApiError> {
    let target = service.fleet().get(zone, agent).map(|m| m.target(steady_ms()));
    target.ok_or_else(|| ApiError {
        code: ErrorCode::NotFound,
        message: format!("there is no agent {zone}/{agent}"),
        hint: Some("see who there is with `sally agent ls`".into()),
    })
}

impl Service {
    /// Asks an agent for a sign of life. Says whether it could be addressed.
    pub async fn probe(&self, zone: &Zone, agent: &Agent, nonce: Nonce) -> bool {
        let to = self.fleet().get(zone, agent).and_then(|m| m.address());
        let Some(to) = to else { return false };
        self.send_probe(to, nonce).await;
        true
    }

    /// The same with the address known.
    pub async fn send_probe(&self, to: To, nonce: Nonce) {
        let subject = self.prefix.agent(Channel::Live, &to.zone, &to.agent);
        let probe = Probe { v: VERSION, to, nonce };
        self.publish(subject, Envelope::seal(Kind::Probe, &self.key, &probe)).await;
    }

    /// Notes the answer to a probe for whoever waits for it.
    pub fn answered(&self, zone: &Zone, agent: &Agent, nonce: Nonce, sent_ms: i64) {
        if let Some(waiting) = self.probes().get(&nonce) {
            let (zone, agent) = (zone.clone(), agent.clone());
            let pong = Pong { zone, agent, at: Instant::now(), at_ms: now_ms(), sent_ms };
            // A full queue holds an answer of each already.
            let _ = waiting.try_send(pong);
        }
    }

    /// Tells watchers and agents of runs that are not wanted any more.
    pub async fn tell_stopped(&self, stopped: &Stopped) {
        self.send_cancels(&stopped.tell).await;
        for change in &stopped.changes {
            inbound::tell(self, change, None).await;
        }
    }
}

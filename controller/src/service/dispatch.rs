//! Dispatching: an order bound to one agent and attempt, signed, published.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError};

use sally_common::clock::{now_ms, steady_ms};
use sally_common::id::{Digest, JobId, Nonce};
use sally_common::limit::LIVE_MESSAGE_MAX;
use sally_common::name::{Agent, Zone};
use sally_common::subject::Channel;
use sally_common::wire::command::{Cancel, Dispatch, Lane, To};
use sally_common::wire::record::RunState;
use sally_common::wire::{Envelope, Kind, OrderSignature, VERSION};

use super::Service;
use crate::ledger::{DispatchMark, LedgerError, Run};

/// Orders kept in memory; others are read from the ledger.
const ORDERS_KEPT: usize = 128;
/// Runs of one hint, whatever slots an agent says it has.
const HINT_MAX: u32 = 64;
/// How often what waits is read for one hint, if more is left meanwhile.
const HINT_TRIES: usize = 3;

/// What a dispatch says of the agent's other work.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// The question that it answers.
    answers: Option<Nonce>,
    /// More waits behind it.
    more: bool,
}

/// An order as it travels.
#[derive(Debug, Clone)]
pub struct OrderBytes {
    /// Its exact bytes.
    pub text: Arc<str>,
    /// Their digest.
    pub digest: Digest,
    /// Who signed.
    pub signatures: Arc<[OrderSignature]>,
}

/// The orders of the newest jobs.
#[derive(Debug, Default)]
pub struct Orders {
    by_job: HashMap<JobId, OrderBytes>,
    age: VecDeque<JobId>,
}

impl Orders {
    /// Keeps an order.
    pub fn put(&mut self, job: JobId, order: OrderBytes) {
        if self.by_job.insert(job.clone(), order).is_none() {
            self.age.push_back(job);
        }
        while self.age.len() > ORDERS_KEPT {
            if let Some(oldest) = self.age.pop_front() {
                self.by_job.remove(&oldest);
            }
        }
    }
}

impl OrderBytes {
    /// Wraps an order's bytes, which are text: they are JSON.
    pub fn new(text: String, signatures: Vec<OrderSignature>) -> Self {
        Self { digest: Digest::of(text.as_bytes()), text: text.into(), signatures: signatures.into() }
    }
}

/// The attempt that a run's next dispatch is: the first, or the same again.
fn next_attempt(run: &Run) -> u32 {
    if run.state == RunState::Pending { run.attempt + 1 } else { run.attempt }
}

impl Service {
    fn orders(&self) -> std::sync::MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an order at hand.
    pub fn keep_order(&self, job: JobId, order: OrderBytes) {
        self.orders().put(job, order);
    }

    async fn order(&self, job: &JobId) -> Result<Option<OrderBytes>, LedgerError> {
        let kept = self.orders().by_job.get(job).cloned();
        if kept.is_some() {
            return Ok(kept);
        }
        let Some((bytes, signatures)) = self.ledger.order_of(job).await? else { return Ok(None) };
        let (Ok(text), Ok(signatures)) = (String::from_utf8(bytes), serde_json::from_str(&signatures)) else {
            tracing::error!(%job, "its order in the ledger cannot be read");
            return Ok(None);
        };
        let order = OrderBytes::new(text, signatures);
        self.orders().put(job.clone(), order.clone());
        Ok(Some(order))
    }

    /// Dispatches these runs to agents that are there; the others stay pending and are dispatched when their
    /// agent asks. Returns how many were published.
    pub async fn dispatch(&self, runs: &[Run]) -> Result<usize, LedgerError> {
        self.dispatch_saying(runs, false).await
    }

    /// The same; the last one says whether more waits behind it.
    async fn dispatch_saying(&self, runs: &[Run], more: bool) -> Result<usize, LedgerError> {
        let now = now_ms();
        let mut ready = Vec::new();
        {
            let fleet = self.fleet();
            for run in runs {
                let Some(member) = fleet.get(&run.zone, &run.agent) else { continue };
                if !member.takes_work(steady_ms()) || member.enrolled.key != run.agent_key {
                    continue;
                }
                if let Some(to) = member.address() {
                    ready.push((run, to, next_attempt(run)));
                }
            }
        }
        self.send(ready, Told { answers: None, more }, now).await
    }

    /// Dispatches these runs to an agent as part of the answer to its question.
    pub async fn dispatch_to(&self, to: &To, runs: &[Run], answers: Nonce) -> Result<usize, LedgerError> {
        let ready = runs.iter().map(|run| (run, to.clone(), next_attempt(run))).collect();
        self.send(ready, Told { answers: Some(answers), more: false }, now_ms()).await
    }

    /// Dispatches what is first in an agent's order, one run more than it has slots. If more waits the last one says so, and
    /// the agent asks.
    pub async fn hint(&self, zone: &Zone, agent: &Agent) -> Result<(), LedgerError> {
        // What was left while it was read may not be in it: with nothing to send that could say so, it is read again.
        for _ in 0..HINT_TRIES {
            let (slots, left) = {
                let fleet = self.fleet();
                let member = fleet.get(zone, agent).filter(|m| m.takes_work(steady_ms()));
                let Some(member) = member else { return Ok(()) };
                let slots = member.heartbeat.as_ref().map_or(1, |b| b.slots.total).clamp(1, HINT_MAX);
                (slots as usize, member.left())
            };
            let mut first = self.ledger.waiting_for(zone, agent, slots as u32 + 2).await?;
            let more = first.len() > slots + 1;
            first.truncate(slots + 1);
            let more = self.fleet().get_mut(zone, agent).is_some_and(|member| member.read(left, more));
            if !first.is_empty() || !more {
                return self.dispatch_saying(&first, more).await.map(|_| ());
            }
        }
        Ok(())
    }

    /// Asks an agent how these runs stand, by dispatches that have expired: who knows them says so, who does not
    /// refuses them, and nothing is started.
    pub async fn ask_about(&self, to: &To, runs: &[Run]) -> Result<(), LedgerError> {
        let now = now_ms();
        for run in runs {
            let Some(order) = self.order(run.id.job()).await? else { continue };
            let asked = Run { expires_ms: now - 1, ..run.clone() };
            let envelope = self.seal_dispatch(&asked, to.clone(), run.attempt, &order, Told::default(), now);
            let subject = self.prefix.agent(Channel::Live, &to.zone, &to.agent);
            self.publish(subject, envelope).await;
        }
        Ok(())
    }

    /// Publishes the first dispatches of a new job's runs: those that were recorded as dispatched.
    pub async fn publish_first(&self, runs: &[Run], order: &OrderBytes, now: i64) {
        for run in runs.iter().filter(|run| run.state == RunState::Dispatched) {
            let Some(incarnation) = run.incarnation else { continue };
            let to = To {
                zone: run.zone.clone(),
                agent: run.agent.clone(),
                agent_key: run.agent_key.clone(),
                incarnation,
            };
            self.publish_dispatch(run, to, run.attempt, order, Told::default(), now).await;
        }
    }

    async fn send(&self, ready: Vec<(&Run, To, u32)>, told: Told, now: i64) -> Result<usize, LedgerError> {
        // What is on record as dispatched to this incarnation under this attempt needs no new mark.
        let is_marked = |run: &Run, to: &To, attempt: u32| {
            run.state == RunState::Dispatched
                && run.attempt == attempt
                && run.incarnation == Some(to.incarnation)
        };
        let marks = ready.iter().filter(|(run, to, attempt)| !is_marked(run, to, *attempt));
        let marks: Vec<DispatchMark> = marks
            .map(|(run, to, attempt)| DispatchMark {
                run: run.id.clone(),
                attempt: *attempt,
                incarnation: to.incarnation,
                at_ms: now,
            })
            .collect();
        let mut allowed = self.ledger.dispatch(marks).await?.into_iter();
        sally_common::fail::point("controller.dispatch.after-mark");
        let mut sent = 0;
        let last = ready.len().saturating_sub(1);
        for (n, (run, to, attempt)) in ready.into_iter().enumerate() {
            if !is_marked(run, &to, attempt) && allowed.next() != Some(true) {
                continue;
            }
            let Some(order) = self.order(run.id.job()).await? else { continue };
            let told = Told { more: told.more && n == last, ..told };
            self.publish_dispatch(run, to, attempt, &order, told, now).await;
            sent += 1;
        }
        Ok(sent)
    }

    async fn publish_dispatch(
        &self,
        run: &Run,
        to: To,
        attempt: u32,
        order: &OrderBytes,
        told: Told,
        now: i64,
    ) {
        let subject = self.prefix.agent(Channel::Task, &to.zone, &to.agent);
        let envelope = self.seal_dispatch(run, to, attempt, order, told, now);
        match run.direct {
            true => self.publish_direct(run, attempt, envelope).await,
            false => self.publish(subject, envelope).await,
        }
    }

    fn seal_dispatch(
        &self,
        run: &Run,
        to: To,
        attempt: u32,
        order: &OrderBytes,
        told: Told,
        now: i64,
    ) -> Envelope {
        let mut dispatch = Dispatch {
            v: VERSION,
            to,
            run: run.id.clone(),
            attempt,
            issued_ms: now,
            expires_ms: run.expires_ms,
            order_digest: order.digest,
            order_bytes: order.text.len() as u64,
            order: Some(order.text.as_ref().to_owned()),
            order_signatures: order.signatures.to_vec(),
            answers: told.answers,
            lane: if run.direct { Lane::Direct } else { Lane::Queue },
            more: told.more,
        };
        let envelope = Envelope::seal(Kind::Dispatch, &self.key, &dispatch);
        if envelope.body.len() <= LIVE_MESSAGE_MAX {
            return envelope;
        }
        dispatch.order = None;
        Envelope::seal(Kind::Dispatch, &self.key, &dispatch)
    }

    /// Tells agents to end these runs.
    pub async fn send_cancels(&self, runs: &[Run]) {
        for run in runs {
            let to = self.fleet().get(&run.zone, &run.agent).and_then(|m| m.address());
            let Some(to) = to else { continue };
            let subject = self.prefix.agent(Channel::Live, &to.zone, &to.agent);
            let cancel = Cancel {
                v: VERSION,
                to,
                run: run.id.clone(),
                attempt: run.attempt.max(1),
                issued_ms: now_ms(),
                hard: run.cancel_hard,
            };
            self.publish(subject, Envelope::seal(Kind::Cancel, &self.key, &cancel)).await;
        }
    }
}

//! What must be done although nobody asks: expiry, nudges, forgetting.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sally_common::clock::{now_ms, steady_ms};
use sally_common::id::{JobId, Nonce, RunId};
use sally_common::wire::record::RunState;
use tokio::sync::watch;
use tokio::time::{Instant, interval};

use super::settings::Bounds;
use super::{Service, direct, inbound};
use crate::ledger::LedgerError;

/// How often the ledger is looked at.
const PERIOD: Duration = Duration::from_millis(500);
/// A dispatch without a sign of life for this long is said again; then after twice as long, and so on.
const NUDGE_FIRST_MS: i64 = 1_000;
const NUDGE_MAX_MS: i64 = 60_000;
/// Runs nudged at one look.
const NUDGES: u32 = 500;
/// How often files and old jobs are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Jobs removed in one transaction.
const PRUNED_AT_ONCE: u32 = 1_000;
/// Such transactions in one sweep, at most.
const PRUNES: u32 = 100;

/// A request id that was cancelled before its submission came is remembered this long.
const REQUESTS_KEPT_MS: i64 = 7 * 24 * 3600 * 1000;

/// How far the wall clock may go back between two looks before it was set.
const SET_MS: i64 = 1_000;

/// By the steady clock.
struct Nudge {
    next_ms: i64,
    pause_ms: i64,
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct Chores {
    nudges: HashMap<RunId, Nudge>,
    /// By how much the wall clock was ahead of the steady one.
    ahead_ms: Option<i64>,
}

/// Does the chores until `stop` is set.
pub async fn serve(service: Arc<Service>, bounds: Bounds, mut stop: watch::Receiver<bool>) {
    let mut chores = Chores::default();
    let mut swept = Instant::now();
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.changed() => return,
        }
        service.watchers().sweep();
        if let Err(error) = chores.once(&service).await {
            tracing::error!(%error, "cannot read or write the ledger");
        }
        if swept.elapsed() >= SWEEP_EVERY {
            swept = Instant::now();
            sweep(&service, &bounds).await;
        }
    }
}

impl Chores {
    async fn once(&mut self, service: &Service) -> Result<(), LedgerError> {
        let (now, steady) = (now_ms(), steady_ms());
        if service.ledger.next_expiry().await?.is_some_and(|at| at <= now) {
            loop {
                let expired = service.ledger.expire(now).await?;
                for change in &expired.changes {
                    inbound::tell(service, change, None).await;
                }
                if !expired.more {
                    break;
                }
            }
        }
        if self.was_set_back(now, steady) {
            tracing::warn!(
                "the clock of this host was set back: attempts that wait for their time are made now"
            );
            while retry(service, i64::MAX).await? > 0 {}
        } else {
            retry(service, now).await?;
        }
        direct::give_up(service, now).await?;
        let hints = service.fleet().to_hint(steady);
        for (zone, agent) in hints {
            service.hint(&zone, &agent).await?;
        }
        // Two that use one identity are told apart by who is still there.
        let doubled = service.fleet().doubled(steady);
        for (zone, agent) in doubled {
            service.probe(&zone, &agent, Nonce::generate()).await;
        }
        self.nudge(service, now, steady).await
    }

    /// Whether somebody has set the wall clock back since the last look. Times in the ledger that lie ahead may
    /// be far away then.
    fn was_set_back(&mut self, now: i64, steady: i64) -> bool {
        let ahead = now - steady;
        self.ahead_ms.replace(ahead).is_some_and(|before| ahead < before - SET_MS)
    }

    /// Says dispatches again of which nothing was heard. The agent answers duplicates from its journal.
    async fn nudge(&mut self, service: &Service, now: i64, steady: i64) -> Result<(), LedgerError> {
        let silent = service.ledger.silent(now - NUDGE_FIRST_MS, NUDGES).await?;
        let seen: HashSet<RunId> = silent.iter().map(|r| r.id.clone()).collect();
        self.nudges.retain(|run, _| seen.contains(run));
        let mut due = Vec::new();
        for run in silent {
            let first = Nudge { next_ms: steady, pause_ms: NUDGE_FIRST_MS };
            let nudge = self.nudges.entry(run.id.clone()).or_insert(first);
            if nudge.next_ms <= steady {
                nudge.pause_ms = (nudge.pause_ms * 2).min(NUDGE_MAX_MS);
                nudge.next_ms = steady + nudge.pause_ms;
                due.push(run);
            }
        }
        let (cancelled, waiting): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|r| r.cancel_requested_ms.is_some());
        let waiting: Vec<_> = waiting.into_iter().filter(|r| r.state == RunState::Dispatched).collect();
        service.send_cancels(&cancelled).await;
        if !waiting.is_empty() {
            service.dispatch(&waiting).await?;
        }
        Ok(())
    }
}

/// Sends the next attempts whose pause is over, to agents that are there and not behind; others get them in
/// their order. Returns how many there were.
async fn retry(service: &Service, now: i64) -> Result<usize, LedgerError> {
    if service.ledger.next_retry().await?.is_none_or(|at| at > now) {
        return Ok(0);
    }
    let changes = service.ledger.release(now).await?;
    let (mut ready, mut hints) = (Vec::new(), Vec::new());
    {
        let (mut fleet, steady) = (service.fleet(), steady_ms());
        for run in changes.iter().map(|change| &change.run) {
            let Some(member) = fleet.get_mut(&run.zone, &run.agent) else { continue };
            if member.takes_work(steady) && !member.behind {
                ready.push(run.clone());
            } else if member.leave(steady) {
                hints.push((run.zone.clone(), run.agent.clone()));
            }
        }
    }
    for change in &changes {
        inbound::tell(service, change, None).await;
    }
    service.dispatch(&ready).await?;
    for (zone, agent) in hints {
        service.hint(&zone, &agent).await?;
    }
    Ok(changes.len())
}

async fn sweep(service: &Service, bounds: &Bounds) {
    let open: Result<Vec<_>, _> = service.ledger.open_jobs().await;
    let Ok(open) = open else { return };
    let spared: HashSet<JobId> = open.iter().map(|j| j.id.clone()).collect();
    if let Err(error) = service.logs.sweep(SystemTime::now(), spared).await {
        tracing::warn!(%error, "cannot remove old output");
    }
    let mut blobs = HashSet::new();
    for job in &open {
        if let Ok(Some((order, _))) = service.ledger.order_of(&job.id).await
            && let Ok(order) = sally_common::wire::read::<sally_common::wire::order::Order>(&order)
        {
            blobs.extend(order.blobs().map(|c| c.digest));
        }
    }
    if let Err(error) = service.blobs.sweep(SystemTime::now(), blobs).await {
        tracing::warn!(%error, "cannot remove old programs");
    }
    if let Err(error) = prune(service, bounds).await {
        tracing::warn!(%error, "cannot remove old jobs");
    }
    if let Err(error) = service.ledger.forget_requests(now_ms() - REQUESTS_KEPT_MS).await {
        tracing::warn!(%error, "cannot remove old cancellations");
    }
}

/// Removes what is too old, and of the rest the oldest while the ledger is too large.
async fn prune(service: &Service, bounds: &Bounds) -> Result<(), LedgerError> {
    let old_ms = now_ms() - i64::from(bounds.jobs_days) * 24 * 3600 * 1000;
    let mut early = 0;
    for _ in 0..PRUNES {
        if service.ledger.prune(old_ms, PRUNED_AT_ONCE).await? > 0 {
            continue;
        }
        if service.ledger.used_bytes().await? <= bounds.ledger_bytes {
            break;
        }
        let removed = service.ledger.prune(now_ms(), PRUNED_AT_ONCE).await?;
        early += removed;
        if removed == 0 {
            tracing::warn!(
                bound = bounds.ledger_bytes,
                "the ledger is larger than its bound, and every job in it is open"
            );
            break;
        }
    }
    if early > 0 {
        tracing::warn!(
            jobs = early,
            bound = bounds.ledger_bytes,
            "removed ended jobs before their age: the ledger was too large"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_is_noticed_once() {
        let mut chores = Chores::default();
        assert!(!chores.was_set_back(1_000_000, 1_000_000), "the first look");
        assert!(!chores.was_set_back(1_000_500, 1_000_501), "it may be slewed");
        assert!(!chores.was_set_back(4_601_000, 1_001_000), "set forward, what waits comes early by itself");
        assert!(chores.was_set_back(1_001_500, 1_001_500));
        assert!(!chores.was_set_back(1_002_000, 1_002_000));
    }
}

//! What agents hold that the ledger sees otherwise: runs of another incarnation, and runs that nobody knows.

use std::collections::BTreeMap;

use sally_common::id::{Digest, Incarnation, RequestId};
use sally_common::wire::api::Offline;
use sally_common::wire::command::RunAttempt;
use sally_common::wire::record::RunState;

use super::types::*;
use super::work::{Row, Work};

/// Jobs that are made for runs which nobody knows, as long as they are on record.
const RECOVERED_KEPT: u64 = 10_000;

impl Work<'_> {
    /// What a renewed journal still holds is not lost with its old incarnation.
    pub(super) fn adopt(&mut self, held: &[RunAttempt], incarnation: Incarnation) {
        for h in held {
            let Some(row) = self.runs.get_mut(&h.run) else { continue };
            let open = matches!(row.value.state, RunState::Dispatched | RunState::Running);
            if open && row.value.attempt == h.attempt && row.value.incarnation != Some(incarnation) {
                row.write().incarnation = Some(incarnation);
            }
        }
    }

    /// Makes a record for a run that an agent holds and nobody knows, in a job that is made for such runs.
    pub(super) fn recover(&mut self, found: &Recovered) -> bool {
        let id = found.run.job();
        if self.runs.contains_key(&found.run) {
            return true;
        }
        let request = format!("recovered-{id}");
        match self.jobs.get(id) {
            Some(job) if job.value.request_id.as_str() != request => return false,
            Some(_) => {}
            None => {
                let full = self.recovered_before + self.recovered.len() as u64 >= RECOVERED_KEPT;
                let Ok(request_id) = request.parse() else { return false };
                if full {
                    return false;
                }
                self.recovered.push(id.clone());
                self.jobs.insert(id.clone(), Row { value: recovered_job(found, request_id), dirty: true });
            }
        }
        self.runs.insert(found.run.clone(), Row { value: recovered_run(found), dirty: true });
        if let Some(job) = self.jobs.get_mut(id) {
            let job = job.write();
            *job.counts.entry(RunState::Running).or_insert(0) += 1;
            job.ended_ms = None;
        }
        true
    }
}

fn recovered_job(found: &Recovered, request_id: RequestId) -> Job {
    Job {
        id: found.run.job().clone(),
        request_digest: Digest::of(request_id.as_str().as_bytes()),
        request_id,
        by: "unknown".into(),
        title: "recovered".into(),
        created_ms: found.at_ms,
        expires_ms: found.at_ms,
        retry_of: None,
        offline: Offline::Wait,
        counts: BTreeMap::new(),
        ended_ms: None,
        priority: 0,
        latest_only: None,
        direct: false,
        retry: None,
    }
}

fn recovered_run(found: &Recovered) -> Run {
    let target = NewRun {
        zone: found.zone.clone(),
        agent: found.agent.clone(),
        agent_key: found.agent_key.clone(),
        dispatch_to: None,
        refused: None,
    };
    Run {
        state: RunState::Running,
        attempt: found.attempt,
        incarnation: Some(found.incarnation),
        dispatched_ms: Some(found.at_ms),
        ..Run::pending(found.run.clone(), &target, found.at_ms)
    }
}

//! The ledger on real files. `model` compares it with a naive twin over random walks.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod attempts;
mod basic;
mod files;
mod model;
mod roster;
mod speed;
mod stopping;

use sally_common::id::{Digest, Incarnation, JobId, RequestId, RunId};
use sally_common::key::{PublicKey, SigningKey};
use sally_common::name::{Agent, Zone};
use sally_common::wire::Kind;
use sally_common::wire::api::Offline;
use sally_common::wire::record::{ResultState, RunState};

use super::*;

/// An agent of a test.
#[derive(Clone)]
pub(super) struct Who {
    key: SigningKey,
    incarnation: Incarnation,
    zone: Zone,
    name: Agent,
}

impl Who {
    fn new(n: usize) -> Self {
        Self {
            key: SigningKey::generate(),
            incarnation: Incarnation::generate(),
            zone: Zone::new("z").unwrap(),
            name: Agent::new(&format!("a{n}")).unwrap(),
        }
    }

    fn public(&self) -> PublicKey {
        self.key.public().clone()
    }

    fn target(&self) -> NewRun {
        NewRun {
            zone: self.zone.clone(),
            agent: self.name.clone(),
            agent_key: self.public(),
            dispatch_to: None,
            refused: None,
        }
    }

    fn report(&self, body: &str) -> Report {
        let body = body.as_bytes().to_vec();
        let signature = self.key.sign(Kind::Result, &body);
        Report { kind: ReportKind::Result, body, key: self.public(), signature }
    }

    fn mark(&self, run: &RunId, attempt: u32, at_ms: i64) -> DispatchMark {
        DispatchMark { run: run.clone(), attempt, incarnation: self.incarnation, at_ms }
    }

    fn start(&self, run: &RunId, attempt: u32, started_ms: i64) -> StartMark {
        let (agent_key, incarnation) = (self.public(), self.incarnation);
        StartMark { run: run.clone(), attempt, agent_key, incarnation, started_ms }
    }

    fn outcome(&self, run: &RunId, attempt: u32, state: RunState) -> Settlement {
        let started = !matches!(state, RunState::Rejected | RunState::Expired);
        Settlement {
            run: run.clone(),
            attempt,
            agent_key: self.public(),
            incarnation: self.incarnation,
            state,
            exit_code: Some(0).filter(|_| state == RunState::Succeeded),
            signal: None,
            reason: None,
            message: None,
            started_ms: Some(500).filter(|_| started),
            finished_ms: 600,
            duration_ms: Some(100),
            result_state: Some(ResultState::Valid),
            retryable: None,
            jitter: 1.0,
            report: self.report(&format!("{run} {attempt} {state}")),
            at_ms: 700,
        }
    }

    fn refusal(&self, run: &RunId, attempt: u32, reason: &str) -> Refused {
        Refused {
            run: run.clone(),
            attempt,
            agent_key: self.public(),
            incarnation: self.incarnation,
            reason: reason.into(),
            message: "no".into(),
            report: self.report(&format!("{run} {attempt} {reason}")),
            at_ms: 700,
        }
    }

    fn seen(&self, counter: u64) -> AgentSeen {
        AgentSeen {
            zone: self.zone.clone(),
            name: self.name.clone(),
            agent_key: self.public(),
            incarnation: self.incarnation,
            counter,
            labels: [("role".to_owned(), "web".to_owned())].into(),
            heartbeat: format!("{{\"counter\":{counter}}}"),
            seen_ms: i64::try_from(counter).unwrap(),
            journal: counter * 10,
        }
    }
}

pub(super) fn new_job(request: &str, at_ms: i64, targets: Vec<NewRun>) -> NewJob {
    NewJob {
        id: JobId::generate(at_ms),
        request_id: request.parse::<RequestId>().unwrap(),
        request_digest: Digest::of(request.as_bytes()),
        by: "ada".into(),
        title: "true".into(),
        created_ms: at_ms,
        expires_ms: at_ms + 10_000,
        order: b"{\"order\":1}".to_vec(),
        signatures_json: "[]".into(),
        retry_of: None,
        offline: Offline::Wait,
        priority: 4,
        latest_only: None,
        direct: false,
        retry: None,
        targets,
    }
}

pub(super) async fn open(dir: &tempfile::TempDir) -> Ledger {
    Ledger::open(dir.path().join("ledger.sqlite")).await.unwrap()
}

pub(super) async fn created(ledger: &Ledger, new: NewJob) -> Job {
    match ledger.submit(new).await.unwrap() {
        Submitted::Created(job) => job,
        other => panic!("{other:?}"),
    }
}

pub(super) fn committed(settled: Settled) -> Change {
    match settled {
        Settled::Committed(change) => *change,
        other => panic!("{other:?}"),
    }
}

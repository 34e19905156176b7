//! The one way in for work: command line now, and every later door.

use sally_common::clock::{now_ms, steady_ms};
use sally_common::id::{Digest, JobId};
use sally_common::limit::{ORDER_MAX, PRIORITY_MAX, TARGETS_MAX};
use sally_common::name::User;
use sally_common::program;
use sally_common::wire;
use sally_common::wire::Refusal;
use sally_common::wire::api::{ApiError, ErrorCode, Offline, Submit, Submitted, Target};
use sally_common::wire::command::Lane;
use sally_common::wire::order::{Order, Program};
use sally_common::wire::record::{AgentState, RunState};

use super::dispatch::OrderBytes;
use super::fleet::{Member, TWO_PROCESSES};
use super::settings::Enrolled;
use super::{Service, records};
use crate::ledger::{self, NewJob, NewRun, Run};

/// Most runs that are dispatched by the submission itself; more wait for their agents' questions and the chores.
const DISPATCH_AT_ONCE: usize = 20_000;
/// Longest key of `latest_only`, in characters.
const LATEST_ONLY_MAX: usize = 128;

/// Checks, resolves, records and dispatches a submission.
pub async fn submit(service: &Service, caller: &User, submit: Submit) -> Result<Submitted, ApiError> {
    let order = check(service, caller, &submit)?;
    check_content(service, &order).await?;
    let now = now_ms();
    let mut targets = service.fleet().resolve(&order.targets, steady_ms())?;
    apply_offline(submit.offline, &mut targets)?;
    if targets.len() > TARGETS_MAX {
        return Err(usage(format!("{} targets are more than {TARGETS_MAX}", targets.len()), None));
    }
    let job = JobId::generate_after(&service.last_job, now);
    let new = NewJob {
        id: job.clone(),
        request_id: order.request_id.clone(),
        request_digest: request_digest(&order, &submit),
        by: caller.to_string(),
        title: title(&order),
        created_ms: now,
        expires_ms: order.expires_ms,
        order: submit.order.as_bytes().to_vec(),
        signatures_json: serde_json::to_string(&submit.signatures).unwrap_or_default(),
        retry_of: submit.retry_of.clone(),
        offline: submit.offline,
        priority: submit.priority,
        latest_only: submit.latest_only.clone(),
        direct: submit.lane == Lane::Direct,
        retry: order.task.retry.clone().filter(|_| order.task.idempotent),
        targets: new_runs(service, &targets, submit.lane == Lane::Direct),
    };
    let runs = new.runs();
    // The watcher is there before anything can happen.
    if let Some(inbox) = &submit.watch {
        service.watchers().add(job.clone(), inbox, submit.watch_output);
    }
    let order_bytes = OrderBytes::new(submit.order.clone(), submit.signatures.clone());
    service.keep_order(job.clone(), order_bytes.clone());
    sally_common::fail::point("controller.submit.before-commit");
    match service.ledger.submit(new).await.map_err(internal)? {
        ledger::Submitted::Replacing { job, replaced } => {
            service.tell_stopped(&replaced).await;
            send_out(service, &job, runs, &order_bytes, now).await?;
            let targets = targets.into_iter().map(|(_, t)| t).collect();
            Ok(Submitted { job: records::job(&job), created: true, targets })
        }
        ledger::Submitted::Created(job) => {
            send_out(service, &job, runs, &order_bytes, now).await?;
            let targets = targets.into_iter().map(|(_, t)| t).collect();
            Ok(Submitted { job: records::job(&job), created: true, targets })
        }
        ledger::Submitted::Existing(existing) => {
            if let Some(inbox) = &submit.watch {
                service.watchers().add(existing.id.clone(), inbox, submit.watch_output);
            }
            let targets = targets.into_iter().map(|(_, t)| t).collect();
            Ok(Submitted { job: records::job(&existing), created: false, targets })
        }
        ledger::Submitted::Conflict { existing } => Err(ApiError {
            code: ErrorCode::Conflict,
            message: format!(
                "request id {} was used for another submission, job {existing}",
                order.request_id
            ),
            hint: Some("use another --request-id, or submit exactly the same".into()),
        }),
    }
}

/// Publishes what was recorded as dispatched, tells of what ended at once, and has agents that are behind ask. What
/// does not arrive is sent again when its agent asks.
async fn send_out(
    service: &Service,
    job: &ledger::Job,
    runs: Vec<Run>,
    order: &OrderBytes,
    now: i64,
) -> Result<(), ApiError> {
    let ended = job.counts.keys().any(|state| state.is_end());
    let runs = match ended {
        true => service.ledger.runs(&job.id, 0, ledger::PAGE_MAX, &[]).await.map_err(internal)?,
        false => runs,
    };
    sally_common::fail::point("controller.submit.after-commit");
    service.publish_first(&runs, order, now).await;
    sally_common::fail::point("controller.submit.after-dispatch");
    let mut hints = Vec::new();
    {
        let mut fleet = service.fleet();
        for run in runs.iter().filter(|run| run.state == RunState::Pending) {
            let Some(member) = fleet.get_mut(&run.zone, &run.agent) else { continue };
            if member.leave(steady_ms()) {
                hints.push((run.zone.clone(), run.agent.clone()));
            }
        }
    }
    for (zone, agent) in hints {
        service.hint(&zone, &agent).await.map_err(internal)?;
    }
    for run in runs.iter().filter(|run| run.state.is_end()) {
        service.tell_run(&job.id, records::run_head(run, job.created_ms), true, None).await;
    }
    if job.ended_ms.is_some() {
        service.tell_ended(records::job(job)).await;
    }
    Ok(())
}

/// The runs of these targets. Whose agent is there is dispatched with the submission, in one commit, unless other work
/// waits for it: then they take their place behind that. The direct lane waits for nobody.
fn new_runs(service: &Service, targets: &[(Enrolled, Target)], direct: bool) -> Vec<NewRun> {
    let fleet = service.fleet();
    let new = |(n, (enrolled, _)): (usize, &(Enrolled, Target))| {
        let member = fleet.get(&enrolled.zone, &enrolled.agent).filter(|m| m.enrolled.key == enrolled.key);
        let there = member.filter(|m| m.takes_work(steady_ms()) && m.incarnation.is_some());
        let sent = match direct {
            true => there,
            false => there.filter(|m| n < DISPATCH_AT_ONCE && !m.behind),
        };
        NewRun {
            zone: enrolled.zone.clone(),
            agent: enrolled.agent.clone(),
            agent_key: enrolled.key.clone(),
            dispatch_to: sent.and_then(|m| m.incarnation),
            refused: (direct && there.is_none()).then(|| why_not(member)),
        }
    };
    targets.iter().enumerate().map(new).collect()
}

/// Why an agent gets nothing on the direct lane.
fn why_not(member: Option<&Member>) -> (String, String) {
    let (refusal, message) = match member {
        Some(m) if m.presence.is_two(steady_ms()) => (Refusal::NotConnected, TWO_PROCESSES),
        Some(m) if m.drained && m.state(steady_ms()) != AgentState::Offline => {
            (Refusal::Draining, "the agent was told to take no new work")
        }
        _ => (Refusal::NotConnected, "the agent is offline, and the direct lane does not wait"),
    };
    (refusal.code(), message.to_owned())
}

fn check(service: &Service, caller: &User, submit: &Submit) -> Result<Order, ApiError> {
    if submit.order.len() > ORDER_MAX {
        return Err(usage(
            format!("the order has {} bytes, more than {ORDER_MAX}", submit.order.len()),
            None,
        ));
    }
    let trust = service.trust();
    let signers = trust
        .check_order(submit.order.as_bytes(), &submit.signatures, now_ms())
        .map_err(|refusal| ApiError { code: ErrorCode::Denied, message: refusal.to_string(), hint: None })?;
    if !signers.iter().any(|s| s.name == *caller) {
        let message = format!("{caller} submits an order that {caller} has not signed");
        return Err(ApiError { code: ErrorCode::Denied, message, hint: None });
    }
    let order: Order =
        wire::read(submit.order.as_bytes()).map_err(|refusal| usage(refusal.to_string(), None))?;
    order.check().map_err(|e| usage(e.to_string(), None))?;
    check_request(&order, submit)?;
    if order.expires_ms <= now_ms() {
        return Err(usage(
            "the order has expired already".into(),
            Some("check the clocks, or give a longer --expires"),
        ));
    }
    Ok(order)
}

/// What the submission asks for besides its order.
fn check_request(order: &Order, submit: &Submit) -> Result<(), ApiError> {
    if submit.priority > PRIORITY_MAX {
        return Err(usage(format!("a priority is 0 to {PRIORITY_MAX}, not {}", submit.priority), None));
    }
    let is_key = |key: &String| {
        (1..=LATEST_ONLY_MAX).contains(&key.len()) && key.chars().all(|c| c.is_ascii_graphic())
    };
    if submit.latest_only.as_ref().is_some_and(|key| !is_key(key)) {
        return Err(usage(
            format!("a key of --latest-only has 1 to {LATEST_ONLY_MAX} visible ASCII characters"),
            None,
        ));
    }
    if submit.lane == Lane::Direct && order.task.retry.is_some() {
        let hint = Some("leave out --retries, or use --lane queue");
        return Err(usage("the direct lane tries once".into(), hint));
    }
    Ok(())
}

/// The program and the input must be there and make sense before anybody is told to run it.
async fn check_content(service: &Service, order: &Order) -> Result<(), ApiError> {
    for content in order.blobs() {
        let state = service.blobs.state(content.digest).await.map_err(internal)?;
        if !state.complete || state.bytes != content.bytes {
            return Err(usage(format!("the content {} was not uploaded", content.digest), None));
        }
    }
    if let Program::Script { content, interpreter } = &order.task.program {
        let bytes = match &content.text {
            Some(text) => text.as_bytes().to_vec(),
            None => {
                let size = usize::try_from(content.bytes).unwrap_or(usize::MAX);
                let part = service.blobs.read(content.digest, 0, size).await.map_err(internal)?;
                part.map(|p| p.bytes).unwrap_or_default()
            }
        };
        program::check(&bytes, interpreter.is_some()).map_err(|problem| usage(problem.to_string(), None))?;
    }
    let env = order.task.env.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    sally_common::variable::check_task_env(env).map_err(|e| usage(e.to_string(), None))
}

fn apply_offline(offline: Offline, targets: &mut Vec<(Enrolled, Target)>) -> Result<(), ApiError> {
    let away: Vec<_> = targets.iter().filter(|(_, t)| !t.online).map(|(_, t)| t.agent.to_string()).collect();
    match offline {
        Offline::Wait => Ok(()),
        Offline::Fail if away.is_empty() => Ok(()),
        Offline::Fail => Err(ApiError {
            code: ErrorCode::NoTarget,
            message: format!("offline: {}", away.join(", ")),
            hint: Some("without --offline fail their runs would wait for them".into()),
        }),
        Offline::Skip => {
            targets.retain(|(_, t)| t.online);
            if targets.is_empty() {
                let message = "every agent that matches is offline".to_owned();
                return Err(ApiError { code: ErrorCode::NoTarget, message, hint: None });
            }
            Ok(())
        }
    }
}

/// What makes two submissions the same: everything but the moment and the signatures.
fn request_digest(order: &Order, submit: &Submit) -> Digest {
    let mut same = order.clone();
    same.expires_ms -= same.created_ms;
    same.created_ms = 0;
    // Sealing the same secret twice gives other bytes.
    for secret in &mut same.task.secrets {
        secret.sealed = String::new();
    }
    let how = (submit.offline, submit.priority, &submit.latest_only, submit.lane);
    let text = wire::to_bytes(&(same, how, &submit.retry_of));
    Digest::of(&text)
}

fn title(order: &Order) -> String {
    let task = &order.task;
    let title = task.title.clone().or_else(|| task.name.as_ref().map(ToString::to_string));
    let title = title.unwrap_or_else(|| task.args.join(" "));
    title.chars().filter(|c| !c.is_control()).take(120).collect()
}

/// The request makes no sense.
pub fn usage(message: String, hint: Option<&str>) -> ApiError {
    ApiError { code: ErrorCode::Usage, message, hint: hint.map(str::to_owned) }
}

/// The controller failed.
pub fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError { code: ErrorCode::Internal, message: error.to_string(), hint: None }
}

//! The one way in for work: command line now, and every later door.

use sally_common::clock::now_ms;
use sally_common::id::{Digest, JobId};
use sally_common::limit::{ORDER_MAX, TARGETS_MAX};
use sally_common::name::User;
use sally_common::program;
use sally_common::wire;
use sally_common::wire::api::{ApiError, ErrorCode, Offline, Submit, Submitted, Target};
use sally_common::wire::order::{Order, Program};
use sally_common::wire::record::AgentState;

use super::dispatch::OrderBytes;
use super::settings::Enrolled;
use super::{Service, records};
use crate::ledger::{self, NewJob, NewRun};

/// Most runs that are dispatched by the submission itself; more wait for their agents' questions and the chores.
const DISPATCH_AT_ONCE: usize = 20_000;

/// Checks, resolves, records and dispatches a submission.
pub async fn submit(service: &Service, caller: &User, submit: Submit) -> Result<Submitted, ApiError> {
    let order = check(service, caller, &submit)?;
    check_content(service, &order).await?;
    let now = now_ms();
    let mut targets = service.fleet().resolve(&order.targets, now)?;
    apply_offline(submit.offline, &mut targets)?;
    if targets.len() > TARGETS_MAX {
        return Err(usage(format!("{} targets are more than {TARGETS_MAX}", targets.len()), None));
    }
    let job = JobId::generate(now);
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
        targets: new_runs(service, &targets, now),
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
        ledger::Submitted::Created(created) => {
            sally_common::fail::point("controller.submit.after-commit");
            // What does not arrive is sent again when its agent asks.
            service.publish_first(&runs, &order_bytes, now).await;
            sally_common::fail::point("controller.submit.after-dispatch");
            let targets = targets.into_iter().map(|(_, t)| t).collect();
            Ok(Submitted { job: records::job(&created), created: true, targets })
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

/// The runs of these targets. Whose agent is there is dispatched with the submission, in one commit.
fn new_runs(service: &Service, targets: &[(Enrolled, Target)], now: i64) -> Vec<NewRun> {
    let fleet = service.fleet();
    let new = |(n, (enrolled, _)): (usize, &(Enrolled, Target))| {
        let member = fleet.get(&enrolled.zone, &enrolled.agent).filter(|_| n < DISPATCH_AT_ONCE);
        let there = member.filter(|m| m.state(now) != AgentState::Offline && m.enrolled.key == enrolled.key);
        NewRun {
            zone: enrolled.zone.clone(),
            agent: enrolled.agent.clone(),
            agent_key: enrolled.key.clone(),
            dispatch_to: there.and_then(|m| m.incarnation),
        }
    };
    targets.iter().enumerate().map(new).collect()
}

fn check(service: &Service, caller: &User, submit: &Submit) -> Result<Order, ApiError> {
    if submit.order.len() > ORDER_MAX {
        return Err(usage(
            format!("the order has {} bytes, more than {ORDER_MAX}", submit.order.len()),
            None,
        ));
    }
    let signers = service
        .trust
        .check_order(submit.order.as_bytes(), &submit.signatures, now_ms())
        .map_err(|refusal| ApiError { code: ErrorCode::Denied, message: refusal.to_string(), hint: None })?;
    if !signers.iter().any(|s| s.name == *caller) {
        let message = format!("{caller} submits an order that {caller} has not signed");
        return Err(ApiError { code: ErrorCode::Denied, message, hint: None });
    }
    let order: Order =
        wire::read(submit.order.as_bytes()).map_err(|refusal| usage(refusal.to_string(), None))?;
    order.check().map_err(|e| usage(e.to_string(), None))?;
    if order.expires_ms <= now_ms() {
        return Err(usage(
            "the order has expired already".into(),
            Some("check the clocks, or give a longer --expires"),
        ));
    }
    Ok(order)
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
    let text = wire::to_bytes(&(same, submit.offline, &submit.retry_of));
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

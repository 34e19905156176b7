//! Hosts become agents here, and agents cease to be.
//!
//! A token is made by a caller; its digest is in the ledger. A host proves it, names its own keys, and gets credentials for its
//! own subjects. A revoked agent is believed no more from the commit on, and the broker is told to let it in no more.

use sally_common::clock::now_ms;
use sally_common::id::{Digest, Nonce};
use sally_common::key::PublicKey;
use sally_common::limit::SMALL_MESSAGE_MAX;
use sally_common::name::{Agent, User, Zone};
use sally_common::nats::accounts::{Role, enrolment_subjects};
use sally_common::wire::api::{ApiError, EnrolToken, ErrorCode, Revoked};
use sally_common::wire::enrol::{
    Enrol, Enrolled as Answer, Identity, NotEnrolled, Outcome, Papers, TTL_MAX_MS,
};
use sally_common::wire::{self, Envelope, Kind, Refusal, VERSION};

use super::settings::Enrolled;
use super::submission::{internal, usage};
use super::{Service, agents};
use crate::ledger::LedgerError;
use crate::ledger::roster::{Asking, EnrolledRow, RevokedRow, TokenRow};

/// The shortest that a token may hold.
const TTL_MIN_MS: u64 = 1_000;
/// Hosts that one token may be for.
const USES_MAX: u32 = 10_000;
/// How long a token stays on record after its end, so that who uses it late hears why.
const TOKEN_KEPT_MS: i64 = 24 * 3600 * 1000;

/// Who is enrolled by the list of the configuration and by the ledger, without those who were revoked.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn members(
    ledger: &crate::ledger::Ledger,
    listed: Vec<Enrolled>,
) -> Result<Vec<Enrolled>, LedgerError> {
    let revoked = ledger.revoked().await?;
    let mut all = listed;
    for row in ledger.enrolled().await? {
        all.retain(|agent| agent.zone != row.zone || agent.agent != row.agent);
        all.push(Enrolled { zone: row.zone, agent: row.agent, key: row.key, user: Some(row.user) });
    }
    all.retain(|agent| !revoked.iter().any(|row| row.key == agent.key));
    Ok(all)
}

/// Users of the broker that are let in no more, with the time, in seconds since 1970.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn revoked_users(ledger: &crate::ledger::Ledger) -> Result<Vec<(Zone, String, u64)>, LedgerError> {
    let rows = ledger.revoked().await?.into_iter();
    Ok(rows.filter_map(|row| Some((row.zone, row.user?, seconds(row.at_ms)))).collect())
}

fn seconds(ms: i64) -> u64 {
    u64::try_from(ms / 1000).unwrap_or(0)
}

/// Makes a token.
pub async fn token(
    service: &Service,
    by: &User,
    zone: Zone,
    ttl_ms: u64,
    uses: u32,
    key: &PublicKey,
    user: &str,
) -> Result<EnrolToken, ApiError> {
    if !(TTL_MIN_MS..=TTL_MAX_MS.unsigned_abs()).contains(&ttl_ms) {
        return Err(usage("a token holds between a second and 30 days".into(), None));
    }
    if !(1..=USES_MAX).contains(&uses) {
        return Err(usage(format!("a token is for 1 to {USES_MAX} hosts"), None));
    }
    service.accounts.knows(&zone).map_err(|message| ApiError {
        code: ErrorCode::Usage,
        message,
        hint: None,
    })?;
    let (id, now) = (Nonce::generate(), now_ms());
    let expires_ms = now + i64::try_from(ttl_ms).unwrap_or(TTL_MAX_MS);
    let name = id.to_string();
    let role = Role::Enroller { zone: zone.as_str(), token: &name };
    // The broker counts in whole seconds; what comes in the last one the controller refuses.
    let jwt = service.accounts.issue(role, user, Some(seconds(expires_ms) + 1)).map_err(internal)?;
    let row = TokenRow {
        id: name.clone(),
        zone,
        key_digest: Digest::of(key.to_string().as_bytes()),
        by: by.clone(),
        created_ms: now,
        expires_ms,
        uses,
        used: 0,
    };
    tracing::info!(token = name, zone = %row.zone, uses, %by, "a token of enrolment is made");
    service.ledger.forget_tokens(now - TOKEN_KEPT_MS).await.map_err(internal)?;
    service.ledger.add_token(row).await.map_err(internal)?;
    Ok(EnrolToken { id, jwt, expires_ms })
}

/// Answers a host that asks to be enrolled.
pub async fn answer(service: &Service, message: async_nats::Message) {
    let (zone, token, request, key) = match read(service, &message) {
        Ok(read) => read,
        Err(refusal) => {
            return tracing::warn!(subject = %message.subject, reason = %refusal.code(), "refused an enrolment");
        }
    };
    // Where the answer goes follows from where the request came; what a host names as its reply is nothing.
    let (_, subject) = enrolment_subjects(service.prefix.as_str(), zone.as_str(), &token);
    let outcome = match enrol(service, &zone, &token, &request, &key).await {
        Ok(papers) => Outcome::Papers(Box::new(papers)),
        Err(reason) => {
            tracing::warn!(token, %zone, reason = %reason.code(), "refused an enrolment");
            Outcome::Refused(reason)
        }
    };
    let answer = Answer { v: VERSION, nonce: request.nonce, outcome };
    service.publish(subject, Envelope::seal(Kind::Enrolled, &service.key, &answer)).await;
}

fn read(
    service: &Service,
    message: &async_nats::Message,
) -> Result<(Zone, String, Enrol, PublicKey), Refusal> {
    let rest = message.subject.as_str().strip_prefix(service.prefix.as_str());
    let rest = rest.and_then(|rest| rest.strip_prefix(".enroll.")).ok_or(Refusal::Misdirected)?;
    let (zone, token) = rest.split_once('.').ok_or(Refusal::Misdirected)?;
    let zone = Zone::new(zone).map_err(|_| Refusal::Misdirected)?;
    let token: Nonce = token.parse().map_err(|_| Refusal::Misdirected)?;
    // Which key it must be says the ledger.
    let headers = message.headers.as_ref();
    let key = wire::verify(Kind::Enrol, headers, &message.payload, SMALL_MESSAGE_MAX, |_| true)?;
    Ok((zone, token.to_string(), wire::read(&message.payload)?, key))
}

async fn enrol(
    service: &Service,
    zone: &Zone,
    token: &str,
    request: &Enrol,
    key: &PublicKey,
) -> Result<Papers, NotEnrolled> {
    let identity = request.identity().map_err(|_| NotEnrolled::UnknownToken)?;
    if identity.token.to_string() != token {
        return Err(NotEnrolled::UnknownToken);
    }
    // The account that lets its credential in is that of the subject's zone.
    if identity.zone != *zone {
        return Err(NotEnrolled::OtherZone);
    }
    let Identity { zone, agent, key: own, user, .. } = identity;
    let failed = |what: &str| tracing::error!(%zone, %agent, "cannot enrol: {what}");
    // Before it is on record: who is enrolled must be able to come in.
    let role = Role::Agent { zone: zone.as_str(), agent: agent.as_str() };
    let jwt = service.accounts.issue(role, &user, None).map_err(|error| {
        failed(&error);
        NotEnrolled::CannotIssue
    })?;
    let member =
        EnrolledRow { zone: zone.clone(), agent: agent.clone(), key: own.clone(), user: user.clone() };
    let is_taken = service.fleet().key(&zone, &agent).is_some_and(|known| known != own);
    let key_digest = Digest::of(key.to_string().as_bytes());
    let asking = Asking { token: token.to_owned(), key_digest, member, is_taken, at_ms: now_ms() };
    let is_new = service.ledger.enrol(asking).await.map_err(|error| {
        failed(&error.to_string());
        NotEnrolled::CannotIssue
    })??;
    service.fleet().admit(Enrolled { zone: zone.clone(), agent: agent.clone(), key: own, user: Some(user) });
    tracing::info!(%zone, %agent, token, is_new, "an agent is enrolled");
    Ok(Papers { zone, agent, jwt, trust: (*service.trust()).clone() })
}

/// Believes an agent no more, and has the broker cut it off.
pub async fn revoke(service: &Service, by: &User, zone: &Zone, agent: &Agent) -> Result<Revoked, ApiError> {
    let Some(member) = service.fleet().get(zone, agent).map(|member| member.enrolled.clone()) else {
        return Err(ApiError {
            code: ErrorCode::NotFound,
            message: format!("there is no agent {zone}/{agent}"),
            hint: Some("see who there is with `sally agent ls`".into()),
        });
    };
    let at_ms = now_ms();
    let row = RevokedRow {
        zone: zone.clone(),
        agent: agent.clone(),
        key: member.key,
        user: member.user.clone(),
        at_ms,
        by: by.clone(),
    };
    service.ledger.revoke(row).await.map_err(internal)?;
    // Before its work is ended: what it says meanwhile counts no more, and no work is submitted to it.
    service.fleet().dismiss(zone, agent);
    tracing::warn!(%zone, %agent, %by, "an agent is revoked");
    let problem = match member.user {
        None => Some("the key of its user at the broker is not known here".to_owned()),
        Some(user) => {
            service.accounts.revoke(zone, &user, seconds(at_ms));
            let pushed = service.accounts.push().await;
            if pushed.is_err() {
                // Tried again until the broker has it.
                service.accounts_changed.send_modify(|n| *n += 1);
            }
            pushed.err().map(|error| error.to_string()).or_else(|| service.accounts.knows(zone).err())
        }
    };
    // What waits for it ends, and what it held is unknown: nobody will say how it ended.
    let runs = agents::end_work(service, by, zone, agent).await?;
    Ok(Revoked { zone: zone.clone(), agent: agent.clone(), runs, problem })
}

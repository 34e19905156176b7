//! The broker's tree of trust: one operator, a system account, the hub account and one account per zone.
//!
//! A zone is an account, an agent is a user of it. Permissions alone do not keep agents apart: an agent can name any
//! subject as the reply of a message and have the *server* write its answer there. Inside an account of its own that
//! answer never leaves the zone; and no stream an agent writes to answers at all.
//!
//! - Accounts are minted by the operator's signing key, so only who has that decides what a zone imports. The operator's own
//!   key says which signing key that is, and can be kept elsewhere.
//! - What each may do is in `claims` and nowhere else.
//! - Keys of users answer the broker's nonce and do nothing else (see [`super::creds`]).

use std::collections::BTreeMap;

use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::claims::{self, ENROLLER_READS, ENROLLER_WRITES};
pub use super::claims::{ACCOUNTS_INBOX, AGENT_READS, AGENT_WRITES, CLAIMS_LOOKUP, CLAIMS_UPDATE};
use super::connect::Attempt;
use super::creds::Creds;
use super::jwt::{self, CannotSign, Subject};
use crate::id::Digest;

/// The hub account, where JetStream, the controller and the callers live.
pub const HUB_ACCOUNT: &str = "SALLY";
/// Where the controller reads the broker's answers.
pub const CONTROLLER_INBOX: &str = "_INBOX_ctl";
/// What the inbox of every caller begins with; see [`caller_inbox`].
pub const CALLER_INBOX_ROOT: &str = "_INBOX_cli";

/// Returns the inbox prefix of a caller, to be given to its connection.
///
/// All callers' inboxes share a root, so that the controller may write to them and to no other inbox.
pub fn caller_inbox(name: &str) -> String {
    format!("{CALLER_INBOX_ROOT}.{name}")
}

/// Returns whether a subject is inside some caller's inbox. The controller answers a request only then: a caller that
/// names a task subject as its reply would else have the controller write there.
pub fn is_caller_inbox(subject: &str) -> bool {
    let Some(rest) = subject.strip_prefix(CALLER_INBOX_ROOT).and_then(|rest| rest.strip_prefix('.')) else {
        return false;
    };
    rest.split_once('.').is_some_and(|(name, rest)| is_name(name) && !rest.is_empty())
        && !subject.contains(['*', '>'])
}

/// The subject on which a host asks to be enrolled with a token, and the one on which it is answered.
pub fn enrolment_subjects(prefix: &str, zone: &str, token: &str) -> (String, String) {
    let subject = |word: &str| format!("{prefix}.{word}.{zone}.{token}");
    (subject(ENROLLER_WRITES), subject(ENROLLER_READS))
}

/// The users of the broker, by what they may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role<'a> {
    /// The controller, in the hub: everything of Sally's, and JetStream.
    Controller,
    /// A person's command line or a platform, in the hub: requests to the controller, and its own inbox.
    Caller {
        /// The caller's name; its inbox is [`caller_inbox`] of it.
        name: &'a str,
    },
    /// An agent, in the account of its zone: its own five subjects to write, its own one to read.
    Agent {
        /// The zone, which must have been added.
        zone: &'a str,
        /// The agent.
        agent: &'a str,
    },
    /// A host that has a token of enrolment, in the account of its zone: one subject to ask on, one to be answered on.
    Enroller {
        /// The zone, which must have been added.
        zone: &'a str,
        /// The token's id.
        token: &'a str,
    },
    /// A broker inside a zone that connects out to the hub's, in the account of its zone: what the zone's agents may.
    Leaf {
        /// The zone, which must have been added.
        zone: &'a str,
    },
    /// Whoever gives changed accounts to the broker, in its system account: that and nothing else.
    Accounts,
}

impl<'a> Role<'a> {
    /// The role of a user by the name in its JWT, as [`Trust::user`] writes it.
    pub fn of_name(user: &'a str) -> Option<Self> {
        match user.split_once(['/', '.']) {
            None => Some(match user {
                "controller" => Role::Controller,
                "accounts" => Role::Accounts,
                name => Role::Caller { name },
            })
            .filter(|_| is_name(user)),
            Some(("enroll", token)) if user.contains('/') => Some(Role::Enroller { zone: "", token }),
            Some(("leaf", zone)) if user.contains('/') => Some(Role::Leaf { zone }),
            Some((zone, agent)) if is_name(zone) && is_name(agent) => Some(Role::Agent { zone, agent }),
            Some(_) => None,
        }
    }

    /// Whether this role may do it: publish to a subject, or subscribe to a pattern of subjects.
    pub fn may(self, prefix: &str, attempt: Attempt, subject: &str) -> bool {
        let claims = claims::role(prefix, self);
        let list = match attempt {
            Attempt::Publish => &claims["pub"]["allow"],
            Attempt::Subscribe => &claims["sub"]["allow"],
        };
        let patterns = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        patterns.into_iter().any(|pattern| claims::covers(pattern, subject))
    }
}

/// The keys of a [`Trust`], as they are kept on disk: seeds, or public keys of those that are kept elsewhere. Whoever has the
/// operator's signing key owns the broker.
#[derive(Clone, Serialize, Deserialize)]
pub struct TrustSeeds {
    operator: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signing: Option<String>,
    system: String,
    hub: String,
    zones: BTreeMap<String, String>,
    /// What was issued when, so that what has not changed is issued again with the same text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    issued: BTreeMap<String, Issued>,
}

impl std::fmt::Debug for TrustSeeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustSeeds").field("zones", &self.zones.keys()).finish_non_exhaustive()
    }
}

/// When claims were first issued.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Issued {
    claims: Digest,
    at_s: u64,
}

/// The keys of operator and accounts, and what they issue.
pub struct Trust {
    prefix: String,
    operator: KeyPair,
    signing: KeyPair,
    system: KeyPair,
    hub: KeyPair,
    zones: BTreeMap<String, Zone>,
    issued: BTreeMap<String, Issued>,
}

struct Zone {
    key: KeyPair,
    /// Users that are not let in with what was issued up to a time, in seconds since 1970.
    revoked: BTreeMap<String, u64>,
}

/// The tree of trust cannot be made or cannot issue what was asked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TrustError {
    /// Not usable as one token of a subject.
    #[error(
        "{what} {value:?} is not a name: it needs 1 to 63 of a-z, 0-9, _ and -, starting with a letter or digit"
    )]
    NotAName {
        /// What it is: a zone, an agent, a prefix, a caller.
        what: &'static str,
        /// What was given.
        value: String,
    },
    /// A kept seed is damaged or of another kind.
    #[error("the kept seed of {0} is damaged: restore it, or remove the folder to start anew")]
    Seed(String),
    /// The zone was never added.
    #[error("zone {0} has no account at the broker: add the zone first")]
    NoZone(String),
    /// Not the public key of a user of the broker.
    #[error("\"{0}\" is not the public key of a user of the broker: it begins with U and has 56 characters")]
    NotAUser(String),
    /// A key without its seed.
    #[error(transparent)]
    CannotSign(#[from] CannotSign),
}

impl Trust {
    /// Makes fresh keys for a broker whose subjects begin with `prefix`.
    ///
    /// # Errors
    /// When the prefix is not one token.
    pub fn new(prefix: &str) -> Result<Self, TrustError> {
        Ok(Self {
            prefix: name("prefix", prefix)?.to_owned(),
            operator: KeyPair::new_operator(),
            signing: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            hub: KeyPair::new_account(),
            zones: BTreeMap::new(),
            issued: BTreeMap::new(),
        })
    }

    /// Takes up the keys that [`Trust::seeds`] or [`Trust::issuer`] gave.
    ///
    /// # Errors
    /// When the prefix or a zone is not a name, or a seed is damaged.
    pub fn from_seeds(prefix: &str, seeds: &TrustSeeds) -> Result<Self, TrustError> {
        let zones = seeds.zones.iter().map(|(zone, seed)| {
            let key = key(&format!("zone {zone}"), seed, KeyPairType::Account)?;
            Ok((name("zone", zone)?.to_owned(), Zone { key, revoked: BTreeMap::new() }))
        });
        let signing = seeds.signing.as_deref();
        Ok(Self {
            prefix: name("prefix", prefix)?.to_owned(),
            operator: key("the operator", &seeds.operator, KeyPairType::Operator)?,
            // Those of an earlier version have none.
            signing: signing.map_or_else(
                || Ok(KeyPair::new_operator()),
                |seed| key("the operator's signing key", seed, KeyPairType::Operator),
            )?,
            system: key("the system account", &seeds.system, KeyPairType::Account)?,
            hub: key("the hub account", &seeds.hub, KeyPairType::Account)?,
            zones: zones.collect::<Result<_, TrustError>>()?,
            issued: seeds.issued.clone(),
        })
    }

    /// Returns the seeds, to be kept where only the owner reads.
    ///
    /// # Errors
    /// When this holds public keys only.
    pub fn seeds(&self) -> Result<TrustSeeds, TrustError> {
        Ok(TrustSeeds {
            operator: seed(&self.operator)?,
            signing: Some(seed(&self.signing)?),
            system: seed(&self.system)?,
            hub: seed(&self.hub)?,
            zones: self
                .zones
                .iter()
                .map(|(name, zone)| Ok((name.clone(), seed(&zone.key)?)))
                .collect::<Result<_, CannotSign>>()?,
            issued: self.issued.clone(),
        })
    }

    /// Returns what a controller needs to issue credentials of agents and to revoke them: the seeds of the zones' accounts
    /// and of the operator's signing key, and of the others the public keys.
    ///
    /// # Errors
    /// When this holds no seed of the signing key or of a zone.
    pub fn issuer(&self) -> Result<TrustSeeds, TrustError> {
        let zones = self.zones.iter().map(|(name, zone)| Ok((name.clone(), seed(&zone.key)?)));
        Ok(TrustSeeds {
            operator: self.operator.public_key(),
            signing: Some(seed(&self.signing)?),
            system: self.system.public_key(),
            hub: self.hub.public_key(),
            zones: zones.collect::<Result<_, CannotSign>>()?,
            issued: BTreeMap::new(),
        })
    }

    /// Gives a zone its account, unless it has one. Returns whether it is new.
    ///
    /// # Errors
    /// When `zone` is not a name.
    pub fn add_zone(&mut self, zone: &str) -> Result<bool, TrustError> {
        let zone = name("zone", zone)?;
        if self.zones.contains_key(zone) {
            return Ok(false);
        }
        self.zones.insert(zone.to_owned(), Zone { key: KeyPair::new_account(), revoked: BTreeMap::new() });
        Ok(true)
    }

    /// The zones that have an account.
    pub fn zones(&self) -> impl Iterator<Item = &str> {
        self.zones.keys().map(String::as_str)
    }

    /// Lets a user of a zone in no more with anything that was issued up to `at`, in seconds since 1970. It counts in the
    /// account's next JWT.
    ///
    /// # Errors
    /// When the zone has no account, or `user` is no user's public key.
    pub fn revoke(&mut self, zone: &str, user: &str, at: u64) -> Result<(), TrustError> {
        let found = self.zones.get_mut(zone).ok_or_else(|| TrustError::NoZone(zone.to_owned()))?;
        let until = found.revoked.entry(user_key(user)?.public_key()).or_default();
        *until = at.max(*until);
        Ok(())
    }

    /// What the subjects begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The public key of the broker's system account.
    pub fn system_account(&self) -> String {
        self.system.public_key()
    }

    /// The public key of a zone's account.
    pub fn zone_account(&self, zone: &str) -> Option<String> {
        self.zones.get(zone).map(|zone| zone.key.public_key())
    }

    /// Returns the operator's JWT. `now` in seconds since 1970.
    ///
    /// # Errors
    /// When this holds no seed of the operator.
    pub fn operator_jwt(&self, now: u64) -> Result<String, TrustError> {
        let claims = claims::operator(&self.system_account(), &self.signing.public_key());
        let key = self.operator.public_key();
        let subject = Subject {
            key: &key,
            name: "sally",
            issued_at: self.issued_at("operator", &claims, now),
            expires_at: None,
        };
        Ok(jwt::sign(&self.operator, subject, claims)?)
    }

    /// Returns public key and JWT of every account: system, hub and zones. `now` in seconds since 1970.
    ///
    /// # Errors
    /// When this holds no seed of the signing key.
    pub fn account_jwts(&self, now: u64) -> Result<Vec<(String, String)>, TrustError> {
        self.accounts().map(|(name, key, claims)| self.issue(name, key, claims, now)).collect()
    }

    /// Returns public key and JWT of one zone's account. `now` in seconds since 1970.
    ///
    /// # Errors
    /// When the zone has no account, or this holds no seed of the signing key.
    pub fn zone_jwt(&self, zone: &str, now: u64) -> Result<(String, String), TrustError> {
        let found = self.zones.get(zone).ok_or_else(|| TrustError::NoZone(zone.to_owned()))?;
        self.issue(zone, &found.key, self.zone_claims(zone, found), now)
    }

    /// Returns public key and JWT of the accounts that a zone's own broker needs, which is a leaf of the hub's.
    ///
    /// # Errors
    /// When the zone has no account, or this holds no seed of the signing key.
    pub fn leaf_jwts(&self, zone: &str, now: u64) -> Result<Vec<(String, String)>, TrustError> {
        let found = self.zones.get(zone).ok_or_else(|| TrustError::NoZone(zone.to_owned()))?;
        Ok(vec![
            self.issue("SYS", &self.system, claims::system(), now)?,
            self.issue(zone, &found.key, claims::leaf_zone(&found.revoked), now)?,
        ])
    }

    /// Notes what is issued now, so that the same is issued with the same text as long as nothing changes. A broker that
    /// keeps accounts itself keeps what it was given later than that: revocations.
    pub fn note_issued(&mut self, now: u64) {
        let operator = claims::operator(&self.system_account(), &self.signing.public_key());
        let mut all = vec![("operator".to_owned(), operator)];
        all.extend(self.accounts().map(|(name, _, claims)| (name.to_owned(), claims)));
        let noted = all.into_iter().map(|(name, claims)| {
            let at_s = self.issued_at(&name, &claims, now);
            (name, Issued { claims: Digest::of(claims.to_string().as_bytes()), at_s })
        });
        self.issued = noted.collect();
    }

    /// Issues the credentials of a user for the key it will use. Times in seconds since 1970.
    ///
    /// # Errors
    /// When a name in `role` is not one, or its zone was never added.
    pub fn user(
        &self,
        role: Role<'_>,
        key: KeyPair,
        now: u64,
        expires_at: Option<u64>,
    ) -> Result<Creds, TrustError> {
        let jwt = self.user_jwt(role, &key.public_key(), now, expires_at)?;
        Ok(Creds::new(jwt, key))
    }

    /// Issues the JWT of a user whose key is elsewhere. Times in seconds since 1970.
    ///
    /// # Errors
    /// When a name in `role` is not one, its zone was never added, or the key is no user's.
    pub fn user_jwt(
        &self,
        role: Role<'_>,
        key: &str,
        now: u64,
        expires_at: Option<u64>,
    ) -> Result<String, TrustError> {
        let zone = |zone: &str| match self.zones.get(zone) {
            Some(found) => Ok(&found.key),
            None => Err(TrustError::NoZone(zone.to_owned())),
        };
        let (account, user_name) = match role {
            Role::Controller => (&self.hub, "controller".to_owned()),
            Role::Caller { name: caller } => (&self.hub, name("caller", caller)?.to_owned()),
            Role::Agent { zone: of, agent } => (zone(of)?, format!("{of}.{}", name("agent", agent)?)),
            Role::Enroller { zone: of, token } => (zone(of)?, format!("enroll/{}", name("token", token)?)),
            Role::Leaf { zone: of } => (zone(of)?, format!("leaf/{of}")),
            Role::Accounts => (&self.system, "accounts".to_owned()),
        };
        let key = user_key(key)?.public_key();
        let subject = Subject { key: &key, name: &user_name, issued_at: now, expires_at };
        Ok(jwt::sign(account, subject, claims::role(&self.prefix, role))?)
    }

    /// Name, key and claims of every account.
    fn accounts(&self) -> impl Iterator<Item = (&str, &KeyPair, Value)> {
        let first =
            [("SYS", &self.system, claims::system()), (HUB_ACCOUNT, &self.hub, claims::hub(&self.prefix))];
        // Zones are lower case, so no zone can take the hub's or the system account's name.
        let zones =
            self.zones.iter().map(|(name, zone)| (name.as_str(), &zone.key, self.zone_claims(name, zone)));
        first.into_iter().chain(zones)
    }

    fn zone_claims(&self, name: &str, zone: &Zone) -> Value {
        claims::zone(&self.prefix, name, &self.hub.public_key(), &zone.revoked)
    }

    fn issue(
        &self,
        name: &str,
        key: &KeyPair,
        claims: Value,
        now: u64,
    ) -> Result<(String, String), TrustError> {
        let issued_at = self.issued_at(name, &claims, now);
        let key = key.public_key();
        let subject = Subject { key: &key, name, issued_at, expires_at: None };
        let jwt = jwt::sign(&self.signing, subject, claims)?;
        Ok((key, jwt))
    }

    fn issued_at(&self, name: &str, claims: &Value, now: u64) -> u64 {
        let digest = Digest::of(claims.to_string().as_bytes());
        self.issued.get(name).filter(|issued| issued.claims == digest).map_or(now, |issued| issued.at_s)
    }
}

fn seed(key: &KeyPair) -> Result<String, CannotSign> {
    key.seed().map_err(|_| CannotSign { issuer: key.public_key() })
}

/// A seed, or the public key of one that is kept elsewhere.
fn key(of: &str, text: &str, kind: KeyPairType) -> Result<KeyPair, TrustError> {
    let found = KeyPair::from_seed(text).or_else(|_| KeyPair::from_public_key(text));
    let key = found.map_err(|_| TrustError::Seed(of.to_owned()))?;
    if key.key_pair_type() == kind { Ok(key) } else { Err(TrustError::Seed(of.to_owned())) }
}

fn user_key(text: &str) -> Result<KeyPair, TrustError> {
    let found = KeyPair::from_public_key(text).ok().filter(|key| key.key_pair_type() == KeyPairType::User);
    found.ok_or_else(|| TrustError::NotAUser(crate::name::show(text)))
}

fn name<'a>(what: &'static str, value: &'a str) -> Result<&'a str, TrustError> {
    if is_name(value) { Ok(value) } else { Err(TrustError::NotAName { what, value: value.to_owned() }) }
}

/// A name is one token of a subject: `[a-z0-9][a-z0-9_-]{0,62}`.
fn is_name(value: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    value.len() <= 63
        && value.bytes().all(inside)
        && value.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

#[cfg(test)]
#[path = "accounts_tests.rs"]
mod tests;

//! The broker's tree of trust: one operator, a system account, the hub account and one account per zone.
//!
//! A zone is an account, an agent is a user of it. Permissions alone do not keep agents apart: an agent can name any
//! subject as the reply of a message and have the *server* write its answer there. Inside an account of its own that
//! answer never leaves the zone; and no stream an agent writes to answers at all.
//!
//! - The hub exports what agents write as services and the live subjects as a stream; the account of a zone imports
//!   only its own zone's part. Only the operator's key can mint an account, so only it decides what is imported.
//! - Every permission is a list of what is allowed. No user has `allow_responses`: with it a reply subject would not be
//!   held to the list.
//! - Keys of users answer the broker's nonce and do nothing else (see [`super::creds`]).

use std::collections::BTreeMap;

use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::creds::Creds;
use super::jwt::{self, CannotSign, Subject};

/// The hub account, where JetStream, the controller and the callers live.
pub const HUB_ACCOUNT: &str = "SALLY";
/// What an agent writes; each is followed by `.<zone>.<agent>`.
pub const AGENT_WRITES: [&str; 5] = ["state", "result", "log", "heartbeat", "ask"];
/// What an agent reads; followed by `.<zone>.<agent>`.
pub const AGENT_READS: &str = "live";
/// Where the controller reads the broker's answers.
pub const CONTROLLER_INBOX: &str = "_INBOX_ctl";
/// What the inbox of every caller begins with; see [`caller_inbox`].
pub const CALLER_INBOX_ROOT: &str = "_INBOX_cli";

/// An agent holds one subscription; a few more leave room for a reconnect in progress.
const AGENT_SUBSCRIPTIONS: i64 = 8;
const UNLIMITED: i64 = -1;

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
}

/// The seeds of a [`Trust`], as they are kept on disk. Whoever has them owns the broker.
#[derive(Clone, Serialize, Deserialize)]
pub struct TrustSeeds {
    operator: String,
    system: String,
    hub: String,
    zones: BTreeMap<String, String>,
}

/// The keys of operator and accounts, and what they issue.
pub struct Trust {
    prefix: String,
    operator: KeyPair,
    system: KeyPair,
    hub: KeyPair,
    zones: BTreeMap<String, KeyPair>,
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
            system: KeyPair::new_account(),
            hub: KeyPair::new_account(),
            zones: BTreeMap::new(),
        })
    }

    /// Takes up the keys that [`Trust::seeds`] gave.
    ///
    /// # Errors
    /// When the prefix or a zone is not a name, or a seed is damaged.
    pub fn from_seeds(prefix: &str, seeds: &TrustSeeds) -> Result<Self, TrustError> {
        let zones = seeds.zones.iter().map(|(zone, seed)| {
            Ok((name("zone", zone)?.to_owned(), key(&format!("zone {zone}"), seed, KeyPairType::Account)?))
        });
        Ok(Self {
            prefix: name("prefix", prefix)?.to_owned(),
            operator: key("the operator", &seeds.operator, KeyPairType::Operator)?,
            system: key("the system account", &seeds.system, KeyPairType::Account)?,
            hub: key("the hub account", &seeds.hub, KeyPairType::Account)?,
            zones: zones.collect::<Result<_, TrustError>>()?,
        })
    }

    /// Returns the seeds, to be kept where only the owner reads.
    ///
    /// # Errors
    /// Never for keys made by [`Trust::new`] or [`Trust::from_seeds`].
    pub fn seeds(&self) -> Result<TrustSeeds, TrustError> {
        let seed = |key: &KeyPair| key.seed().map_err(|_| CannotSign { issuer: key.public_key() });
        Ok(TrustSeeds {
            operator: seed(&self.operator)?,
            system: seed(&self.system)?,
            hub: seed(&self.hub)?,
            zones: self
                .zones
                .iter()
                .map(|(zone, key)| Ok((zone.clone(), seed(key)?)))
                .collect::<Result<_, CannotSign>>()?,
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
        self.zones.insert(zone.to_owned(), KeyPair::new_account());
        Ok(true)
    }

    /// What the subjects begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The public key of the broker's system account.
    pub fn system_account(&self) -> String {
        self.system.public_key()
    }

    /// Returns the operator's JWT. `now` in seconds since 1970.
    ///
    /// # Errors
    /// Never for keys with seeds.
    pub fn operator_jwt(&self, now: u64) -> Result<String, TrustError> {
        let claims = json!({"type": "operator", "version": 2, "system_account": self.system_account()});
        Ok(self.issue(&self.operator, "sally", now, claims)?)
    }

    /// Returns public key and JWT of every account: system, hub and zones. `now` in seconds since 1970.
    ///
    /// # Errors
    /// Never for keys with seeds.
    pub fn account_jwts(&self, now: u64) -> Result<Vec<(String, String)>, TrustError> {
        let mut accounts = vec![
            (
                self.system.public_key(),
                self.issue(&self.system, "SYS", now, account(limits(false), json!({})))?,
            ),
            (self.hub.public_key(), self.issue(&self.hub, HUB_ACCOUNT, now, self.hub_claims())?),
        ];
        for (zone, key) in &self.zones {
            // Zones are lower case, so no zone can take the hub's or the system account's name.
            accounts.push((key.public_key(), self.issue(key, zone, now, self.zone_claims(zone))?));
        }
        Ok(accounts)
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
        let (account, user_name, claims) = match role {
            Role::Controller => (&self.hub, "controller".to_owned(), self.controller_claims()),
            Role::Caller { name: caller } => {
                (&self.hub, name("caller", caller)?.to_owned(), self.caller_claims(caller))
            }
            Role::Agent { zone, agent } => {
                name("agent", agent)?;
                let account = self.zones.get(zone).ok_or_else(|| TrustError::NoZone(zone.to_owned()))?;
                (account, format!("{zone}.{agent}"), self.agent_claims(zone, agent))
            }
        };
        let subject = Subject { key: &key.public_key(), name: &user_name, issued_at: now, expires_at };
        Ok(Creds::new(jwt::sign(account, subject, claims)?, key))
    }

    fn issue(&self, key: &KeyPair, name: &str, now: u64, claims: Value) -> Result<String, CannotSign> {
        let subject = Subject { key: &key.public_key(), name, issued_at: now, expires_at: None };
        jwt::sign(&self.operator, subject, claims)
    }

    fn hub_claims(&self) -> Value {
        let export = |word: &str, kind: &str| json!({"name": word, "subject": format!("{}.{word}.>", self.prefix), "type": kind});
        let mut exports: Vec<Value> = AGENT_WRITES.iter().map(|word| export(word, "service")).collect();
        exports.push(export(AGENT_READS, "stream"));
        account(limits(true), json!({"exports": exports}))
    }

    fn zone_claims(&self, zone: &str) -> Value {
        let import = |word: &str, kind: &str| {
            let subject = format!("{}.{word}.{zone}.>", self.prefix);
            json!({"name": word, "subject": subject, "account": self.hub.public_key(), "type": kind})
        };
        let mut imports: Vec<Value> = AGENT_WRITES.iter().map(|word| import(word, "service")).collect();
        imports.push(import(AGENT_READS, "stream"));
        account(limits(false), json!({"imports": imports}))
    }

    fn controller_claims(&self) -> Value {
        let own = format!("{}.>", self.prefix);
        let inbox = format!("{CONTROLLER_INBOX}.>");
        let callers = format!("{CALLER_INBOX_ROOT}.>");
        // $JS.FC answers the flow control of a push consumer, which ordered consumers are.
        let publish = [own.as_str(), "$JS.API.>", "$JS.ACK.>", "$JS.FC.>", &inbox, &callers];
        user(&publish, &[own.as_str(), &inbox], UNLIMITED)
    }

    fn caller_claims(&self, caller: &str) -> Value {
        user(&[&format!("{}.api.>", self.prefix)], &[&format!("{}.>", caller_inbox(caller))], UNLIMITED)
    }

    fn agent_claims(&self, zone: &str, agent: &str) -> Value {
        let subject = |word: &str| format!("{}.{word}.{zone}.{agent}", self.prefix);
        let publish: Vec<String> = AGENT_WRITES.iter().map(|word| subject(word)).collect();
        let publish: Vec<&str> = publish.iter().map(String::as_str).collect();
        user(&publish, &[&subject(AGENT_READS)], AGENT_SUBSCRIPTIONS)
    }
}

fn user(publish: &[&str], subscribe: &[&str], subscriptions: i64) -> Value {
    json!({
        "type": "user", "version": 2,
        "pub": {"allow": publish}, "sub": {"allow": subscribe},
        "subs": subscriptions, "data": UNLIMITED, "payload": UNLIMITED,
    })
}

fn account(limits: Value, exchange: Value) -> Value {
    let mut claims = json!({"type": "account", "version": 2, "limits": limits});
    for part in ["exports", "imports"] {
        if let Some(list) = exchange.get(part) {
            claims[part] = list.clone();
        }
    }
    claims
}

fn limits(jetstream: bool) -> Value {
    let mut limits = json!({
        "subs": UNLIMITED, "data": UNLIMITED, "payload": UNLIMITED, "conn": UNLIMITED, "leaf": UNLIMITED,
        "imports": UNLIMITED, "exports": UNLIMITED, "wildcards": true,
    });
    // Without these four an account has no JetStream; the broker refuses a system account that has them.
    if jetstream {
        for storage in ["mem_storage", "disk_storage", "streams", "consumer"] {
            limits[storage] = UNLIMITED.into();
        }
    }
    limits
}

fn key(of: &str, seed: &str, kind: KeyPairType) -> Result<KeyPair, TrustError> {
    let key = KeyPair::from_seed(seed).map_err(|_| TrustError::Seed(of.to_owned()))?;
    if key.key_pair_type() == kind { Ok(key) } else { Err(TrustError::Seed(of.to_owned())) }
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
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::super::jwt::tests::open;
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn trust() -> Trust {
        let mut trust = Trust::new("sally").unwrap();
        trust.add_zone("dmz").unwrap();
        trust
    }

    fn user_claim(role: Role<'_>) -> Value {
        open(trust().user(role, KeyPair::new_user(), NOW, None).unwrap().jwt())
    }

    #[test]
    fn an_agent_may_write_its_five_subjects_and_read_one() {
        let claim = user_claim(Role::Agent { zone: "dmz", agent: "a1" });
        let nats = &claim["nats"];
        assert_eq!(
            nats["pub"],
            json!({"allow": ["sally.state.dmz.a1", "sally.result.dmz.a1", "sally.log.dmz.a1",
                             "sally.heartbeat.dmz.a1", "sally.ask.dmz.a1"]})
        );
        assert_eq!(nats["sub"], json!({"allow": ["sally.live.dmz.a1"]}));
        assert!(nats.get("resp").is_none(), "a reply subject must stay under the publish rules");
    }

    #[test]
    fn a_caller_asks_the_controller_and_reads_its_own_inbox_only() {
        let nats = user_claim(Role::Caller { name: "ann" })["nats"].clone();
        assert_eq!(nats["pub"], json!({"allow": ["sally.api.>"]}));
        assert_eq!(nats["sub"], json!({"allow": ["_INBOX_cli.ann.>"]}));
    }

    #[test]
    fn the_system_and_zone_accounts_have_no_jetstream() {
        for (_, jwt) in trust().account_jwts(NOW).unwrap() {
            let claim = open(&jwt);
            let has = claim["nats"]["limits"].get("disk_storage").is_some();
            assert_eq!(has, claim["name"] == HUB_ACCOUNT, "{}", claim["name"]);
        }
    }

    #[test]
    fn a_zone_imports_its_own_subjects_and_no_others() {
        let accounts = trust().account_jwts(NOW).unwrap();
        let zone = accounts.iter().map(|(_, jwt)| open(jwt)).find(|claim| claim["name"] == "dmz").unwrap();
        let subjects: Vec<_> = zone["nats"]["imports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| format!("{} {}", i["type"].as_str().unwrap(), i["subject"].as_str().unwrap()))
            .collect();
        assert_eq!(
            subjects,
            [
                "service sally.state.dmz.>",
                "service sally.result.dmz.>",
                "service sally.log.dmz.>",
                "service sally.heartbeat.dmz.>",
                "service sally.ask.dmz.>",
                "stream sally.live.dmz.>"
            ]
        );
    }

    #[test]
    fn kept_seeds_give_the_same_tree() {
        let first = trust();
        let text = serde_json::to_string(&first.seeds().unwrap()).unwrap();
        let again = Trust::from_seeds("sally", &serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(first.account_jwts(NOW).unwrap(), again.account_jwts(NOW).unwrap());
        assert_eq!(first.operator_jwt(NOW).unwrap(), again.operator_jwt(NOW).unwrap());
    }

    #[test]
    fn a_zone_is_added_once() {
        let mut trust = trust();
        let before = trust.account_jwts(NOW).unwrap();
        assert!(!trust.add_zone("dmz").unwrap());
        assert_eq!(before, trust.account_jwts(NOW).unwrap());
    }

    #[test]
    fn seeds_of_the_wrong_kind_are_refused() {
        let mut seeds = trust().seeds().unwrap();
        seeds.operator = seeds.hub.clone();
        assert_eq!(
            Trust::from_seeds("sally", &seeds).err(),
            Some(TrustError::Seed("the operator".to_owned()))
        );
    }

    #[test]
    fn nothing_but_a_name_reaches_a_subject() {
        let trust = trust();
        for bad in ["", "*", ">", "a.b", "A", "-a", "a b", "ä", &"a".repeat(64)] {
            assert!(Trust::new(bad).is_err(), "prefix {bad:?}");
            for role in [Role::Agent { zone: "dmz", agent: bad }, Role::Caller { name: bad }] {
                assert!(trust.user(role, KeyPair::new_user(), NOW, None).is_err(), "{role:?}");
            }
        }
        let role = Role::Agent { zone: "shop", agent: "a" };
        assert_eq!(
            trust.user(role, KeyPair::new_user(), NOW, None).err(),
            Some(TrustError::NoZone("shop".to_owned()))
        );
    }

    #[test]
    fn only_a_callers_inbox_is_answered() {
        assert!(is_caller_inbox(&format!("{}.x1.y", caller_inbox("ann"))));
        for subject in [
            "",
            "sally.task.dmz.a1",
            "_INBOX_ctl.x",
            "_INBOX_cli",
            "_INBOX_cli.ann",
            "_INBOX_cli..x",
            "_INBOX_cli.a.>",
        ] {
            assert!(!is_caller_inbox(subject), "{subject}");
        }
    }
}

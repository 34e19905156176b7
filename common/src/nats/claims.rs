//! What every account and every user of the broker may do, as the claims that are signed. The only place where
//! permissions are written: `sally up`, `sally nats` and the enrolment of agents issue nothing else.
//!
//! - The hub exports what agents write as services and what they read as streams; the account of a zone imports only its own
//!   zone's part.
//! - Every permission is a list of what is allowed. No user has `allow_responses`: with it a reply subject would not be
//!   held to the list.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::accounts::{CALLER_INBOX_ROOT, CONTROLLER_INBOX, Role, caller_inbox};

/// What an agent writes; each is followed by `.<zone>.<agent>`.
pub const AGENT_WRITES: [&str; 5] = ["state", "result", "log", "heartbeat", "ask"];
/// What an agent reads; followed by `.<zone>.<agent>`.
pub const AGENT_READS: &str = "live";
/// What a host that enrols writes; followed by `.<zone>.<token>`.
pub(super) const ENROLLER_WRITES: &str = "enroll";
/// What it reads; followed by `.<zone>.<token>`.
pub(super) const ENROLLER_READS: &str = "enrolled";
/// Where accounts that have changed are given to the broker; in its system account.
pub const CLAIMS_UPDATE: &str = "$SYS.REQ.CLAIMS.UPDATE";
/// Where one asks for an account as the broker has it; `*` is its public key.
pub const CLAIMS_LOOKUP: &str = "$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP";
/// Where the broker's answer to that is read.
pub const ACCOUNTS_INBOX: &str = "_INBOX_acc";

/// An agent holds one subscription; a few more leave room for a reconnect in progress.
const AGENT_SUBSCRIPTIONS: i64 = 8;
const UNLIMITED: i64 = -1;

/// The operator. Accounts are issued by its signing key, so that its own can be kept elsewhere.
pub(super) fn operator(system_account: &str, signing: &str) -> Value {
    json!({
        "type": "operator", "version": 2, "system_account": system_account, "signing_keys": [signing],
    })
}

/// The account of the broker itself.
pub(super) fn system() -> Value {
    account(limits(false), [])
}

/// The account where JetStream, the controller and the callers live.
pub(super) fn hub(prefix: &str) -> Value {
    let export =
        |word: &str, kind: &str| json!({"name": word, "subject": format!("{prefix}.{word}.>"), "type": kind});
    let exports: Vec<Value> = exchanged().map(|(word, kind)| export(word, kind)).collect();
    account(limits(true), [("exports", exports)])
}

/// The account of a zone, at the broker where its hub is. `revoked` are users that are not let in with what was issued
/// up to a time, in seconds since 1970.
pub(super) fn zone(prefix: &str, zone: &str, hub: &str, revoked: &BTreeMap<String, u64>) -> Value {
    let import = |word: &str, kind: &str| {
        let subject = format!("{prefix}.{word}.{zone}.>");
        json!({"name": word, "subject": subject, "account": hub, "type": kind})
    };
    let imports: Vec<Value> = exchanged().map(|(word, kind)| import(word, kind)).collect();
    revoking(account(limits(false), [("imports", imports)]), revoked)
}

/// The account of a zone at a broker of its own, which is a leaf of the hub's: there is no hub to import from.
pub(super) fn leaf_zone(revoked: &BTreeMap<String, u64>) -> Value {
    revoking(account(limits(false), []), revoked)
}

/// What a user may do.
pub(super) fn role(prefix: &str, role: Role<'_>) -> Value {
    let own = |word: &str, zone: &str, last: &str| format!("{prefix}.{word}.{zone}.{last}");
    match role {
        Role::Controller => {
            // $JS.FC answers the flow control of a push consumer, which ordered consumers are.
            let inbox = format!("{CONTROLLER_INBOX}.>");
            let all = format!("{prefix}.>");
            let publish =
                [&all, "$JS.API.>", "$JS.ACK.>", "$JS.FC.>", &inbox, &format!("{CALLER_INBOX_ROOT}.>")];
            user(&publish, &[&all, &inbox], UNLIMITED)
        }
        Role::Caller { name } => {
            user(&[&format!("{prefix}.api.>")], &[&format!("{}.>", caller_inbox(name))], UNLIMITED)
        }
        Role::Agent { zone, agent } => {
            let publish = AGENT_WRITES.map(|word| own(word, zone, agent));
            user(
                &publish.each_ref().map(String::as_str),
                &[&own(AGENT_READS, zone, agent)],
                AGENT_SUBSCRIPTIONS,
            )
        }
        Role::Enroller { zone, token } => user(
            &[&own(ENROLLER_WRITES, zone, token)],
            &[&own(ENROLLER_READS, zone, token)],
            AGENT_SUBSCRIPTIONS,
        ),
        Role::Leaf { zone } => {
            let writes: Vec<String> =
                AGENT_WRITES.iter().chain([&ENROLLER_WRITES]).map(|word| own(word, zone, "*")).collect();
            let reads = [own(AGENT_READS, zone, "*"), own(ENROLLER_READS, zone, "*")];
            let writes: Vec<&str> = writes.iter().map(String::as_str).collect();
            user(&writes, &reads.each_ref().map(String::as_str), UNLIMITED)
        }
        Role::Accounts => {
            user(&[CLAIMS_UPDATE, CLAIMS_LOOKUP], &[&format!("{ACCOUNTS_INBOX}.>")], AGENT_SUBSCRIPTIONS)
        }
    }
}

/// Whether everything that `subject` stands for (it may have wildcards too) is in `pattern`.
pub(super) fn covers(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(one), Some(other)) if one == other && one != ">" => {}
            _ => return false,
        }
    }
}

/// What goes between the hub and a zone: a service is answered by the hub, a stream comes from it.
fn exchanged() -> impl Iterator<Item = (&'static str, &'static str)> {
    let services = AGENT_WRITES.into_iter().chain([ENROLLER_WRITES]).map(|word| (word, "service"));
    services.chain([(AGENT_READS, "stream"), (ENROLLER_READS, "stream")])
}

fn user(publish: &[&str], subscribe: &[&str], subscriptions: i64) -> Value {
    json!({
        "type": "user", "version": 2,
        "pub": {"allow": publish}, "sub": {"allow": subscribe},
        "subs": subscriptions, "data": UNLIMITED, "payload": UNLIMITED,
    })
}

fn account<const N: usize>(limits: Value, exchange: [(&str, Vec<Value>); N]) -> Value {
    let mut claims = json!({"type": "account", "version": 2, "limits": limits});
    for (part, list) in exchange {
        claims[part] = list.into();
    }
    claims
}

fn revoking(mut claims: Value, revoked: &BTreeMap<String, u64>) -> Value {
    if !revoked.is_empty() {
        claims["revocations"] = json!(revoked);
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

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_pattern_covers_what_is_inside_it() {
        for (pattern, subject) in
            [("a.b", "a.b"), ("a.*", "a.b"), ("a.*", "a.*"), ("a.>", "a.b.c"), ("a.>", "a.*"), (">", "a")]
        {
            assert!(covers(pattern, subject), "{pattern} {subject}");
        }
        for (pattern, subject) in [
            ("a.b", "a.c"),
            ("a.b", "a"),
            ("a", "a.b"),
            ("a.*", "a.b.c"),
            ("a.*", "a.>"),
            ("a.>", "a"),
            ("a.b", "a.*"),
            ("a.b", ">"),
        ] {
            assert!(!covers(pattern, subject), "{pattern} {subject}");
        }
    }
}

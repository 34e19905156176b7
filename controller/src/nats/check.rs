//! What a credential may and may not do, tried at the broker.
//!
//! A broker does not answer what was allowed. It does say what was refused, in the order in which things were tried; so behind
//! all that is tried comes something that is always refused, and what was not refused until then was allowed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sally_common::id::Nonce;
use sally_common::nats::accounts::Role;
use sally_common::nats::connect::{Attempt, ConnectError, ConnectSettings, ConnectionEvent, connect};
use sally_common::nats::creds::Creds;
use sally_common::nats::jwt;
use serde::Serialize;
use tokio::sync::mpsc;

/// How long the broker may take to refuse.
const LIMIT: Duration = Duration::from_secs(10);
/// A name that stands for another agent, another zone, another caller.
const OTHER: &str = "sally-check";

/// Where to try it.
#[derive(Debug, Clone)]
pub struct Place {
    /// The broker.
    pub url: String,
    /// Certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// TLS before the broker's greeting.
    pub tls_first: bool,
    /// First token of every subject.
    pub prefix: String,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// `publish` or `subscribe`.
    pub action: &'static str,
    /// The subject, or a pattern of them.
    pub subject: String,
    /// Whether the broker let it happen.
    pub allowed: bool,
    /// Whether it should, by who holds the credential.
    pub should_be: bool,
    /// What it would mean, for people.
    pub what: &'static str,
}

/// What a credential may.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    /// Who holds it: the name in it.
    pub holder: String,
    /// Until when it holds, seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// All that was tried.
    pub probes: Vec<Probe>,
}

/// It cannot be tried.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum CheckError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the credentials are of \"{0}\", which is no user that Sally issues")]
    NoHolder(String),
    #[error("the broker does not refuse what nobody may, or the connection is gone")]
    Gone,
}

/// What is tried, for a user of this zone and name: action, subject, and what it would mean.
fn list(prefix: &str, zone: &str, agent: &str) -> Vec<(Attempt, String, &'static str)> {
    use Attempt::{Publish, Subscribe};
    let ours = |rest: &str| format!("{prefix}.{rest}");
    let own = |word: &str| ours(&format!("{word}.{zone}.{agent}"));
    let mut all = Vec::new();
    for (word, what) in [
        ("state", "news of its runs"),
        ("result", "its results"),
        ("log", "its output"),
        ("heartbeat", "its heartbeat"),
        ("ask", "its questions"),
    ] {
        all.push((Publish, own(word), what));
    }
    let publish = [
        (ours(&format!("result.{zone}.{OTHER}")), "a result of another agent"),
        (ours(&format!("result.{OTHER}.{agent}")), "a result of an agent of another zone"),
        (ours(&format!("live.{zone}.{OTHER}")), "a command to another agent"),
        (ours(&format!("enroll.{zone}.{OTHER}")), "an enrolment with somebody's token"),
        (ours(&format!("enrolled.{zone}.{OTHER}")), "the answer to an enrolment"),
        (ours("api.hello"), "a request to the controller"),
        ("_INBOX_ctl.check".to_owned(), "an answer of the broker to the controller"),
        (format!("_INBOX_cli.{OTHER}.check"), "an answer to a caller"),
        ("$JS.API.INFO".to_owned(), "questions to JetStream"),
        ("$JS.API.STREAM.INFO.TASKS".to_owned(), "looking at the stream"),
        (format!("$JS.API.STREAM.DELETE.{OTHER}"), "removing a stream"),
        ("$JS.API.CONSUMER.LIST.TASKS".to_owned(), "looking at consumers"),
        ("$JS.ACK.check".to_owned(), "acknowledging for somebody"),
        ("$SYS.REQ.CLAIMS.UPDATE".to_owned(), "changing accounts"),
        ("$SYS.REQ.SERVER.PING".to_owned(), "questions to the broker about itself"),
    ];
    all.extend(publish.into_iter().map(|(subject, what)| (Publish, subject, what)));
    let subscribe = [
        (own("live"), "its commands"),
        (ours(&format!("live.{zone}.{OTHER}")), "the commands of another agent"),
        (ours(&format!("live.{zone}.>")), "the commands of a whole zone"),
        (ours("task.>"), "all tasks"),
        (ours("result.>"), "all results"),
        (ours("log.>"), "all output"),
        (ours("heartbeat.>"), "all heartbeats"),
        (ours("api.>"), "requests of callers"),
        (ours("enroll.>"), "requests of hosts that enrol"),
        (ours("enrolled.>"), "answers to hosts that enrol"),
        ("_INBOX.>".to_owned(), "the usual inboxes"),
        ("_INBOX_ctl.>".to_owned(), "what the controller is answered"),
        ("_INBOX_cli.>".to_owned(), "what callers are answered"),
        ("$JS.>".to_owned(), "JetStream"),
        ("$SYS.>".to_owned(), "the broker's own events"),
        (">".to_owned(), "everything"),
    ];
    all.extend(subscribe.into_iter().map(|(subject, what)| (Subscribe, subject, what)));
    all
}

/// Connects with a credential and tries what it may.
///
/// # Errors
/// [`CheckError`].
pub async fn check(place: &Place, creds: &Path) -> Result<Checked, CheckError> {
    let claim = jwt::peek(Creds::read(creds).map_err(ConnectError::from)?.jwt()).unwrap_or_default();
    let holder = claim["name"].as_str().unwrap_or_default().to_owned();
    let shown = || sally_common::name::show(&holder);
    let role = Role::of_name(&holder).ok_or_else(|| CheckError::NoHolder(shown()))?;
    let (zone, agent) = match role {
        Role::Agent { zone, agent } => (zone, agent),
        Role::Leaf { zone } => (zone, OTHER),
        _ => (OTHER, OTHER),
    };
    let tried = list(&place.prefix, zone, agent);
    let refused = refused(place, creds, &tried).await?;
    let probes = tried.into_iter().map(|(attempt, subject, what)| Probe {
        action: if attempt == Attempt::Publish { "publish" } else { "subscribe" },
        allowed: !refused.contains(&(attempt, subject.clone())),
        should_be: role.may(&place.prefix, attempt, &subject),
        subject,
        what,
    });
    Ok(Checked { expires: claim["exp"].as_u64(), probes: probes.collect(), holder })
}

/// Tries everything and returns what the broker refused.
async fn refused(
    place: &Place,
    creds: &Path,
    tried: &[(Attempt, String, &'static str)],
) -> Result<Vec<(Attempt, String)>, CheckError> {
    let mut settings = ConnectSettings::new(&place.url, creds, "sally nats check");
    settings.ca_file.clone_from(&place.ca_file);
    settings.tls_first = place.tls_first;
    // Bounded by what is tried.
    let (sender, mut events) = mpsc::unbounded_channel();
    let connecting = connect(&settings, move |event| drop(sender.send(event)));
    let client = tokio::time::timeout(LIMIT, connecting).await.map_err(|_| CheckError::Gone)??;
    let mut held = Vec::new();
    for (attempt, subject, _) in tried {
        match attempt {
            Attempt::Publish => {
                client.publish(subject.clone(), Vec::new().into()).await.map_err(|_| CheckError::Gone)?;
            }
            Attempt::Subscribe => {
                held.push(client.subscribe(subject.clone()).await.map_err(|_| CheckError::Gone)?);
            }
        }
    }
    let mark = format!("sally-check-mark.{}", Nonce::generate());
    client.publish(mark.clone(), Vec::new().into()).await.map_err(|_| CheckError::Gone)?;
    client.flush().await.map_err(|_| CheckError::Gone)?;
    let mut refused = Vec::new();
    let until_mark = async {
        while let Some(event) = events.recv().await {
            match event {
                ConnectionEvent::Refused { subject, .. } if subject == mark => return Ok(()),
                ConnectionEvent::Refused { attempt, subject } => refused.push((attempt, subject)),
                ConnectionEvent::Disconnected => return Err(CheckError::Gone),
                _ => {}
            }
        }
        Err(CheckError::Gone)
    };
    tokio::time::timeout(LIMIT, until_mark).await.map_err(|_| CheckError::Gone)??;
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever widens what an agent may has to say so here.
    #[test]
    fn an_agent_should_be_allowed_six_of_these() {
        let role = Role::Agent { zone: "dmz", agent: "a1" };
        let all = list("sally", "dmz", "a1");
        let may: Vec<&str> = all
            .iter()
            .filter(|(attempt, subject, _)| role.may("sally", *attempt, subject))
            .map(|(_, s, _)| s.as_str())
            .collect();
        let words = ["state", "result", "log", "heartbeat", "ask", "live"];
        assert_eq!(may, words.map(|word| format!("sally.{word}.dmz.a1")));
    }
}

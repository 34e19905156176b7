//! Gives accounts that have changed to a running broker.

use std::path::PathBuf;
use std::time::Duration;

use sally_common::nats::accounts::{ACCOUNTS_INBOX, CLAIMS_LOOKUP, CLAIMS_UPDATE};
use sally_common::nats::connect::{ConnectError, ConnectSettings, connect};
use sally_common::nats::jwt::say_the_same;
use serde::Deserialize;

/// How long connecting, and each account, may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Where accounts go.
#[derive(Debug, Clone)]
pub struct Target {
    /// The broker.
    pub url: String,
    /// Credentials for that and nothing else.
    pub creds: PathBuf,
    /// Certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// TLS before the broker's greeting.
    pub tls_first: bool,
}

/// The broker did not take them.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum PushError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the broker does not answer within 5 s")]
    Silent,
    #[error(
        "the broker takes no accounts while it runs: it needs `resolver: {{ type: full }}`, as `sally nats init` writes it"
    )]
    NoResolver,
    #[error("the broker did not take the account {account}: {said}")]
    Refused { account: String, said: String },
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    data: Option<Said>,
    #[serde(default)]
    error: Option<Said>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    code: u32,
    #[serde(default, alias = "message")]
    description: String,
}

/// Gives accounts, each with its public key, to the broker, unless it has them so. With none it only looks whether the broker
/// is there.
///
/// # Errors
/// [`PushError`] for the first one that it did not take.
pub async fn push(target: &Target, accounts: &[(String, String)]) -> Result<(), PushError> {
    let mut settings = ConnectSettings::new(&target.url, &target.creds, "accounts");
    settings.inbox_prefix = Some(ACCOUNTS_INBOX.to_owned());
    settings.ca_file.clone_from(&target.ca_file);
    settings.tls_first = target.tls_first;
    let connecting = connect(&settings, |event| tracing::debug!("{event}"));
    let client = tokio::time::timeout(LIMIT, connecting).await.map_err(|_| PushError::Silent)??;
    for (account, jwt) in accounts {
        let found = ask(&client, CLAIMS_LOOKUP.replace('*', account), "").await?;
        if std::str::from_utf8(&found).is_ok_and(|found| say_the_same(found, jwt)) {
            continue;
        }
        judge(account, &ask(&client, CLAIMS_UPDATE.to_owned(), jwt).await?)?;
    }
    Ok(())
}

async fn ask(client: &async_nats::Client, subject: String, body: &str) -> Result<bytes::Bytes, PushError> {
    let asked = client.request(subject, body.to_owned().into());
    match tokio::time::timeout(LIMIT, asked).await {
        Ok(Ok(message)) => Ok(message.payload),
        Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
            Err(PushError::NoResolver)
        }
        Ok(Err(_)) | Err(_) => Err(PushError::Silent),
    }
}

fn judge(account: &str, answer: &[u8]) -> Result<(), PushError> {
    let refused = |said: String| Err(PushError::Refused { account: account.to_owned(), said });
    match serde_json::from_slice::<Answer>(answer) {
        Ok(Answer { data: Some(Said { code: 200, .. }), error: None }) => Ok(()),
        Ok(Answer { error: Some(said), .. } | Answer { data: Some(said), .. }) => {
            refused(sally_common::name::show(&said.description))
        }
        Ok(_) => refused("it said nothing".to_owned()),
        Err(error) => refused(format!("its answer cannot be read ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        let said = |text: &str| judge("AX", text.as_bytes()).err().map(|e| e.to_string());
        assert_eq!(said(r#"{"server":{},"data":{"account":"AX","code":200,"message":"jwt updated"}}"#), None);
        for (answer, part) in [
            (
                r#"{"error":{"account":"AX","code":500,"description":"jwt validation failed"}}"#,
                "jwt validation failed",
            ),
            (r#"{"data":{"code":500,"message":"no"}}"#, "no"),
            ("{}", "said nothing"),
            ("+OK", "cannot be read"),
        ] {
            assert!(said(answer).is_some_and(|words| words.contains(part)), "{answer}");
        }
    }
}

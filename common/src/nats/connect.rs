//! One connection to the broker: it comes back by itself, and says what went wrong in words.
//!
//! A denied publish or subscribe does not fail where it was made: the broker says so later, as an event. So the caller
//! gives a function for events, and must not ignore [`ConnectionEvent::Refused`].

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::{Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, ServerError};

use super::creds::{Creds, CredsError};
use super::version::{OLDEST_SUPPORTED, Version};

/// A frozen broker is noticed after about two of these; the client's own default is a minute.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long one try to connect may take, name lookup and handshake included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request waits for its answer unless the caller waits otherwise.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages held for one subscription that is not read; beyond it they are dropped and an event says so. A live message
/// is at most 16 KiB, so at most 64 MiB.
pub const SUBSCRIPTION_CAPACITY: usize = 4096;
/// Commands held for the connection; a sender waits beyond it.
pub const SENDER_CAPACITY: usize = 2048;
/// The longest pause between two tries to reconnect, of those that are many.
pub const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(5);
/// The same of controllers, for whom everybody waits, and of callers, at which a person waits: they are few.
pub const PROMPT_PAUSE_MAX: Duration = Duration::from_millis(500);
/// The first pause; it doubles with each failed try.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(50);

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectSettings {
    /// `nats://host:port` or `tls://host:port`; several with commas.
    pub url: String,
    /// The user's creds file. It is read again at every reconnect, so renewed credentials need no restart.
    pub creds: PathBuf,
    /// What the broker shows as this connection's name.
    pub name: String,
    /// What the inbox of requests begins with; it must be what the credentials allow. An agent has no inbox: `None`.
    pub inbox_prefix: Option<String>,
    /// For long-lived services: succeed at once and connect when the broker is there. Off: the first try decides.
    pub retry_on_initial_connect: bool,
    /// The longest pause between two tries to reconnect.
    pub pause_max: Duration,
    /// Own messages are not delivered to this connection's subscriptions.
    pub no_echo: bool,
    /// A file of certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The TLS handshake comes before the broker's greeting, so that nothing is sent in the clear.
    pub tls_first: bool,
}

impl ConnectSettings {
    /// Settings for one try at connecting without TLS options.
    pub fn new(url: impl Into<String>, creds: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            creds: creds.into(),
            name: name.into(),
            inbox_prefix: None,
            retry_on_initial_connect: false,
            pause_max: RECONNECT_PAUSE_MAX,
            no_echo: false,
            ca_file: None,
            tls_first: false,
        }
    }
}

/// What happened to the connection after it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// Connected, for the first time or again.
    Connected,
    /// The connection is gone; it is being made anew.
    Disconnected,
    /// Closed for good, by this side.
    Closed,
    /// The broker did not allow a publish or a subscribe. The message is lost; the sender was not told.
    Refused {
        /// What was tried.
        attempt: Attempt,
        /// The subject it was tried on.
        subject: String,
    },
    /// The broker did not accept the credentials, or they ended. It is being tried again.
    Unauthorized {
        /// What the broker said.
        message: String,
    },
    /// The server is too old to be used; see [`ConnectError::ServerTooOld`].
    ServerTooOld {
        /// What it says it is.
        version: String,
    },
    /// A subscription was not read fast enough, and messages were dropped.
    SlowConsumer {
        /// The client's number of the subscription.
        subscription: u64,
    },
    /// The broker will stop or is asked to; the connection will move.
    LameDuck,
    /// Anything else the broker or the client said.
    Other {
        /// What was said.
        message: String,
    },
}

/// What the broker refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Publishing.
    Publish,
    /// Subscribing.
    Subscribe,
}

impl std::fmt::Display for ConnectionEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connected => write!(f, "connected to the broker"),
            Self::Disconnected => write!(f, "the connection to the broker is gone, trying again"),
            Self::Closed => write!(f, "the connection to the broker is closed"),
            Self::Refused { attempt: Attempt::Publish, subject } => {
                write!(f, "the broker refused a message to {subject}: these credentials do not allow it")
            }
            Self::Refused { attempt: Attempt::Subscribe, subject } => {
                write!(f, "the broker refused to let us read {subject}: these credentials do not allow it")
            }
            Self::Unauthorized { message } => {
                write!(f, "the broker does not accept the credentials ({message}), trying again")
            }
            Self::ServerTooOld { version } => write!(f, "{}", too_old(version)),
            Self::SlowConsumer { subscription } => {
                write!(
                    f,
                    "messages of subscription {subscription} were dropped: they were not read fast enough"
                )
            }
            Self::LameDuck => write!(f, "the broker is about to stop"),
            Self::Other { message } => write!(f, "the broker connection says: {message}"),
        }
    }
}

/// There is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The creds file cannot be used.
    #[error(transparent)]
    Creds(#[from] CredsError),
    /// The address cannot be read.
    #[error("{url:?} is not a broker address: write nats://HOST:PORT or tls://HOST:PORT")]
    Address {
        /// What was given.
        url: String,
    },
    /// Nobody answers there.
    #[error("no broker answers at {url} ({cause}): is it running, and is the address right?")]
    Unreachable {
        /// The address.
        url: String,
        /// What the client said.
        cause: String,
    },
    /// The broker answered and said no.
    #[error("the broker at {url} does not accept the credentials {}: have them issued again", creds.display())]
    Unauthorized {
        /// The address.
        url: String,
        /// The creds file.
        creds: PathBuf,
    },
    /// TLS failed: another certificate authority, or a broker that does not speak TLS.
    #[error("no secure connection to the broker at {url} ({cause}): check the address and the CA file")]
    Tls {
        /// The address.
        url: String,
        /// What the client said.
        cause: String,
    },
    /// The server is older than [`OLDEST_SUPPORTED`].
    #[error("{}", too_old(version))]
    ServerTooOld {
        /// What it says it is.
        version: String,
    },
}

/// Connects, and keeps the connection: after a loss it is made again for ever, with growing, jittered pauses.
///
/// `events` is called from the connection's own task and must not block.
///
/// # Errors
/// [`ConnectError`]. With [`ConnectSettings::retry_on_initial_connect`] only for settings that can never work: an
/// unreadable creds file or address; a server too old is then told as an event.
pub async fn connect(
    settings: &ConnectSettings,
    events: impl Fn(ConnectionEvent) + Send + Sync + 'static,
) -> Result<Client, ConnectError> {
    // Read once here, so that a wrong path is an error now and not an endless loop later.
    Creds::read(&settings.creds)?;
    let events = Arc::new(events);
    let known: Arc<OnceLock<Client>> = Arc::default();
    let client = options(settings, events.clone(), known.clone())
        .connect(settings.url.as_str())
        .await
        .map_err(|error| explain(settings, &error))?;

    match unsupported(&client) {
        Some(version) if settings.retry_on_initial_connect => {
            events(ConnectionEvent::ServerTooOld { version })
        }
        Some(version) => return Err(ConnectError::ServerTooOld { version }),
        None => {}
    }
    // From now on each reconnect is checked where its event arrives: a cluster may be of mixed age.
    let _ = known.set(client.clone());
    Ok(client)
}

fn options(
    settings: &ConnectSettings,
    events: Arc<impl Fn(ConnectionEvent) + Send + Sync + 'static>,
    known: Arc<OnceLock<Client>>,
) -> ConnectOptions {
    let creds = settings.creds.clone();
    let (tried, pause_max) = (AtomicBool::new(false), settings.pause_max);
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        let auth = answer(&creds, &nonce);
        async move { auth }
    })
    .name(&settings.name)
    .ping_interval(PING_INTERVAL)
    .connection_timeout(CONNECT_TIMEOUT)
    .request_timeout(Some(REQUEST_TIMEOUT))
    .subscription_capacity(SUBSCRIPTION_CAPACITY)
    .client_capacity(SENDER_CAPACITY)
    .max_reconnects(None)
    .reconnect_delay_callback(move |attempt| {
        // The client asks for a pause before the very first try as well: that one is not waited for.
        if tried.swap(true, Ordering::Relaxed) { pause(attempt, pause_max, random()) } else { Duration::ZERO }
    })
    .event_callback(move |event| {
        let event = translate(event);
        let old = if event == ConnectionEvent::Connected { known.get().and_then(unsupported) } else { None };
        events(event);
        if let Some(version) = old {
            events(ConnectionEvent::ServerTooOld { version });
        }
        async {}
    });
    if let Some(prefix) = &settings.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    if settings.retry_on_initial_connect {
        options = options.retry_on_initial_connect();
    }
    if settings.no_echo {
        options = options.no_echo();
    }
    if let Some(file) = &settings.ca_file {
        options = options.add_root_certificates(file.clone()).require_tls(true);
    }
    if settings.tls_first {
        options = options.tls_first();
    }
    options
}

/// Signs the broker's nonce. The key does nothing else: the broker chooses the nonce freely.
fn answer(creds: &std::path::Path, nonce: &[u8]) -> Result<Auth, AuthError> {
    let creds = Creds::read(creds).map_err(AuthError::new)?;
    let mut auth = Auth::new();
    auth.signature = Some(creds.key().sign(nonce).map_err(AuthError::new)?);
    auth.jwt = Some(creds.jwt().to_owned());
    Ok(auth)
}

/// The pause before a try: it doubles from 50 ms to the longest, and half of it is chance, so that many agents that lost one
/// broker at one moment do not come back at one moment.
fn pause(attempt: usize, longest: Duration, random: u32) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let whole = RECONNECT_PAUSE_MIN.saturating_mul(1 << doublings).min(longest);
    whole / 2 + (whole / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Chance for the pause; without a source of it the pause is merely not spread.
fn random() -> u32 {
    getrandom::u32().unwrap_or_default()
}

fn unsupported(client: &Client) -> Option<String> {
    let version = client.server_info().version;
    // Empty: not connected yet.
    if version.is_empty() || version.parse::<Version>().is_ok_and(Version::is_supported) {
        return None;
    }
    Some(version)
}

fn translate(event: Event) -> ConnectionEvent {
    match event {
        Event::Connected => ConnectionEvent::Connected,
        Event::Disconnected => ConnectionEvent::Disconnected,
        Event::Closed => ConnectionEvent::Closed,
        Event::LameDuckMode => ConnectionEvent::LameDuck,
        Event::SlowConsumer(subscription) | Event::ServerError(ServerError::SlowConsumer(subscription)) => {
            ConnectionEvent::SlowConsumer { subscription }
        }
        Event::ServerError(ServerError::AuthorizationViolation) => {
            ConnectionEvent::Unauthorized { message: "authorization violation".to_owned() }
        }
        Event::ServerError(ServerError::Other(message)) => refusal(message),
        Event::ClientError(error) => {
            let message = error.to_string();
            if message.contains("authorization violation") {
                return ConnectionEvent::Unauthorized { message };
            }
            ConnectionEvent::Other { message }
        }
        Event::Draining => ConnectionEvent::Other { message: "draining".to_owned() },
    }
}

/// Reads `Permissions Violation for Publish to "x"` and `... for Subscription to "x" using queue "q"`.
fn refusal(message: String) -> ConnectionEvent {
    let lower = message.to_ascii_lowercase();
    if lower.contains("authentication expired") || lower.contains("authentication revoked") {
        return ConnectionEvent::Unauthorized { message };
    }
    let attempt = if lower.starts_with("permissions violation for publish") {
        Attempt::Publish
    } else if lower.starts_with("permissions violation for subscription") {
        Attempt::Subscribe
    } else {
        return ConnectionEvent::Other { message };
    };
    let subject = message.split('"').nth(1).unwrap_or("an unnamed subject").to_owned();
    ConnectionEvent::Refused { attempt, subject }
}

fn explain(settings: &ConnectSettings, error: &async_nats::ConnectError) -> ConnectError {
    let url = settings.url.clone();
    match error.kind() {
        ConnectErrorKind::ServerParse => ConnectError::Address { url },
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            ConnectError::Unauthorized { url, creds: settings.creds.clone() }
        }
        ConnectErrorKind::Tls => ConnectError::Tls { url, cause: cause(error) },
        ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => ConnectError::Unreachable { url, cause: cause(error) },
    }
}

/// The innermost reason, which is the one a person can use.
fn cause(error: &async_nats::ConnectError) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    match inner.downcast_ref::<io::Error>() {
        Some(io) if io.kind() == io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => inner.to_string(),
    }
}

fn too_old(version: &str) -> String {
    format!(
        "the broker is nats-server {version}; Sally needs {OLDEST_SUPPORTED} or newer: install the package \
         nats-server of Debian 13 or newer, or a release of the NATS project"
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;

    fn refused(message: &str, attempt: Attempt, subject: &str) {
        let expected = ConnectionEvent::Refused { attempt, subject: subject.to_owned() };
        assert_eq!(refusal(message.to_owned()), expected);
    }

    #[test]
    fn permission_violations_name_the_subject() {
        refused(
            r#"Permissions Violation for Publish to "sally.task.z.a""#,
            Attempt::Publish,
            "sally.task.z.a",
        );
        refused(r#"Permissions Violation for Subscription to ">""#, Attempt::Subscribe, ">");
        refused(
            r#"Permissions Violation for Subscription to "A.b" using queue "q""#,
            Attempt::Subscribe,
            "A.b",
        );
        assert!(matches!(refusal("Stale Connection".to_owned()), ConnectionEvent::Other { .. }));
        assert!(matches!(
            refusal("User Authentication Expired".to_owned()),
            ConnectionEvent::Unauthorized { .. }
        ));
    }

    #[test]
    fn pauses_grow_are_bounded_and_spread() {
        let pause = |attempt, random| pause(attempt, RECONNECT_PAUSE_MAX, random);
        assert!(pause(1, 0) >= Duration::from_millis(25) && pause(1, u32::MAX) <= Duration::from_millis(50));
        assert!(pause(3, 0) > pause(1, u32::MAX));
        for attempt in [7, 20, 1000, usize::MAX] {
            assert!(pause(attempt, u32::MAX) <= RECONNECT_PAUSE_MAX);
        }
        assert!(pause(9, 0) < pause(9, u32::MAX / 2));
        assert!(super::pause(usize::MAX, PROMPT_PAUSE_MAX, u32::MAX) <= PROMPT_PAUSE_MAX);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_missing_creds_file_is_named_before_anything_is_tried() {
        let settings = ConnectSettings::new("nats://127.0.0.1:1", "/nonexistent/a.creds", "t");
        let error = connect(&settings, |_| {}).await.err().unwrap();
        assert!(matches!(&error, ConnectError::Creds(_)), "{error}");
        assert!(error.to_string().contains("/nonexistent/a.creds"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn nobody_there_is_said_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.creds");
        Creds::new("a.b.c".to_owned(), nkeys::KeyPair::new_user()).write(&path).unwrap();
        // A port that was just free: bound, read and released.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("nats://127.0.0.1:{port}");
        let error = connect(&ConnectSettings::new(&url, &path, "t"), |_| {}).await.err().unwrap();
        assert_eq!(
            error.to_string(),
            format!(
                "no broker answers at {url} (connection refused): is it running, and is the address right?"
            )
        );
        let error = connect(&ConnectSettings::new("ht tp:/", &path, "t"), |_| {}).await.err().unwrap();
        assert!(matches!(error, ConnectError::Address { .. }), "{error}");
    }

    /// A broker that greets as an old one does and lets everybody in.
    async fn old_broker(listener: tokio::net::TcpListener) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let info = r#"INFO {"server_id":"x","version":"2.9.10","host":"h","port":1,"max_payload":1048576,"headers":true,"nonce":"n","proto":1}"#;
        stream.write_all(format!("{info}\r\n").as_bytes()).await.unwrap();
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {
            stream.write_all(b"PONG\r\n").await.unwrap();
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_broker_too_old_is_refused_or_told_and_the_sentence_says_what_to_install() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.creds");
        Creds::new("a.b.c".to_owned(), nkeys::KeyPair::new_user()).write(&path).unwrap();
        for retry in [false, true] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("nats://{}", listener.local_addr().unwrap());
            let broker = tokio::spawn(old_broker(listener));
            let mut settings = ConnectSettings::new(url, &path, "t");
            settings.retry_on_initial_connect = retry;
            let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
            let connected = connect(&settings, move |event| {
                let _ = sender.send(event);
            })
            .await;
            let sentence = if retry {
                let told = async {
                    loop {
                        let event = events.recv().await.unwrap();
                        if matches!(event, ConnectionEvent::ServerTooOld { .. }) {
                            return event.to_string();
                        }
                    }
                };
                tokio::time::timeout(Duration::from_secs(20), told).await.unwrap()
            } else {
                connected.as_ref().err().unwrap().to_string()
            };
            assert!(sentence.contains("2.9.10") && sentence.contains("needs 2.10.27"), "{sentence}");
            assert!(sentence.contains("Debian 13"), "{sentence}");
            broker.abort();
        }
    }
}

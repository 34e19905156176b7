//! The caller's side of the controller's API: signed requests, verified replies, events.
//!
//! In reading order: this file connects and calls; `parts` joins a reply that came in pieces;
//! `mailbox` hands each reply to the call that waits for it; `submit` signs an order, sends what it
//! names and submits it; `watch` follows a job through restarts of broker and controller.
//!
//! This room prints nothing and knows no flags. What the broker brings is believed only when a controller
//! that the context pins has signed it.

mod mailbox;
mod parts;
mod submit;
mod watch;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sally_common::clock::now_ms;
use sally_common::id::{Digest, Nonce, RequestId};
use sally_common::key::{PublicKey, SigningKey};
use sally_common::limit;
use sally_common::name::User;
use sally_common::nats::connect::{self, ConnectError, ConnectSettings, ConnectionEvent};
use sally_common::subject::Prefix;
use sally_common::wire::api::{ApiError, Call, Reply, ReplyOutcome, Request};
use sally_common::wire::{self, Envelope, Kind};
use serde::de::DeserializeOwned;
use tokio::sync::watch as watching;
use tokio::time::Instant;

use crate::context::Context;
use mailbox::Mailbox;
use parts::Assembly;

pub use submit::{SubmitOptions, sign_order};
pub use watch::{Item, Watch};

/// How long a call waits for its reply.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// After so long without a word the same request is said again.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a call goes on while the broker says that no controller listens: one that restarts is back in a moment.
const AWAY: Duration = Duration::from_secs(5);
/// How often it is tried meanwhile.
const AWAY_PAUSE: Duration = Duration::from_millis(250);
/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection to the broker.
    #[error("cannot reach the broker at {url}: {cause}")]
    Broker {
        /// The broker's address.
        url: String,
        /// What went wrong, for people.
        cause: String,
    },
    /// The broker is there, the controller is not.
    #[error("no controller answers on the broker at {url}{detail}")]
    NoController {
        /// The broker's address.
        url: String,
        /// What else is known, with its own separator.
        detail: String,
    },
    /// Answers came, and none was signed by a controller that the context pins.
    #[error("what answers on the broker at {url} is not the controller of this context: {cause}")]
    NotTrusted {
        /// The broker's address.
        url: String,
        /// Why the last answer was not believed.
        cause: String,
    },
    /// A submission without an answer: it may or may not have been accepted.
    #[error("no answer to the submission, so the job may have been accepted or not ({cause})")]
    Uncertain {
        /// The caller's id of the submission.
        request_id: RequestId,
        /// Why there is no answer.
        cause: String,
    },
    /// The controller answered with an error.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The request is larger than a message may be.
    #[error("the request has {bytes} bytes, the limit is {max}: shorten its parameters and arguments")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The signing key cannot be used.
    #[error(transparent)]
    Key(#[from] sally_common::key::KeyError),
    /// The broker's credentials cannot be used.
    #[error("{0}")]
    Creds(String),
    /// An answer was signed and yet of another shape.
    #[error("the controller's answer to \"{verb}\" cannot be read ({cause}): are both of the same version?")]
    Shape {
        /// The call.
        verb: &'static str,
        /// What was wrong.
        cause: String,
    },
    /// A blob did not arrive whole.
    #[error("the controller did not store the program: {0}")]
    Upload(String),
}

impl ClientError {
    /// Whether trying again later may help: broker or controller are out of reach.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Broker { .. } | Self::NoController { .. } | Self::NotTrusted { .. })
    }
}

/// A connection to a controller. Clones share it.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    notice: Arc<Notice>,
}

/// Who is told that a call waits for a controller that is away, and whether it was said already.
struct Notice {
    tell: Box<dyn Fn(&str) + Send + Sync>,
    said: AtomicBool,
}

struct Inner {
    nats: async_nats::Client,
    url: String,
    prefix: Prefix,
    user: User,
    key: SigningKey,
    controllers: Vec<PublicKey>,
    mailbox: Mailbox,
    trouble: Arc<Mutex<Option<String>>>,
    /// Counts the moments at which events may have been missed, so that watches look at once.
    holes: Arc<watching::Sender<u64>>,
}

impl Client {
    /// Connects to the context's broker. Waits at most five seconds.
    ///
    /// # Errors
    /// An unreadable key or creds file, or no broker at the address.
    pub async fn connect(context: &Context) -> Result<Self, ClientError> {
        let key = SigningKey::read(&context.signing_key)?;
        let url = context.url.clone();
        let mut settings = ConnectSettings::new(&url, &context.creds, format!("sally {}", context.user));
        settings.inbox_prefix = Some(context.inbox.clone());
        settings.ca_file = context.ca_file.clone();
        settings.tls_first = context.tls_first;
        settings.pause_max = connect::PROMPT_PAUSE_MAX;
        let trouble: Arc<Mutex<Option<String>>> = Arc::default();
        let holes = Arc::new(watching::channel(0).0);
        let (heard, counted) = (trouble.clone(), holes.clone());
        let connecting = connect::connect(&settings, move |event| {
            note(&heard, &event);
            if matches!(event, ConnectionEvent::Connected | ConnectionEvent::SlowConsumer { .. }) {
                counted.send_modify(|n| *n += 1);
            }
        });
        let nats = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(nats)) => nats,
            Ok(Err(ConnectError::Creds(error))) => return Err(ClientError::Creds(error.to_string())),
            Ok(Err(error)) => return Err(ClientError::Broker { url, cause: error.to_string() }),
            Err(_) => return Err(ClientError::Broker { url, cause: "no answer within 5 s".to_owned() }),
        };
        let base = format!("{}.{}", context.inbox, Nonce::generate());
        let mailbox = Mailbox::open(&nats, base)
            .await
            .map_err(|error| ClientError::Broker { url: url.clone(), cause: error.to_string() })?;
        Ok(Self {
            inner: Arc::new(Inner {
                nats,
                url,
                prefix: context.prefix.clone(),
                user: context.user.clone(),
                key,
                controllers: context.controllers.clone(),
                mailbox,
                trouble,
                holes,
            }),
            notice: Arc::new(Notice { tell: Box::new(|_| ()), said: AtomicBool::new(false) }),
        })
    }

    /// The same connection; `tell` hears once, in words for people, that a call waits for a controller that is away.
    #[must_use]
    pub fn with_notice(self, tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let notice = Notice { tell: Box::new(tell), said: AtomicBool::new(false) };
        Self { notice: Arc::new(notice), ..self }
    }

    /// The caller's name.
    pub fn user(&self) -> &User {
        &self.inner.user
    }

    /// The caller's public key.
    pub fn key(&self) -> &PublicKey {
        self.inner.key.public()
    }

    /// Asks the controller and waits for its answer, ten seconds at most, five of them while there is no controller.
    ///
    /// # Errors
    /// [`ClientError`]; the controller's own errors are [`ClientError::Api`].
    pub async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        self.call_with(call, None, CALL_TIMEOUT).await
    }

    /// The same with bytes that follow the request, and another patience.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_with<T: DeserializeOwned>(
        &self,
        call: Call,
        payload: Option<&[u8]>,
        timeout: Duration,
    ) -> Result<T, ClientError> {
        Ok(self.call_bytes(call, payload, Patience { timeout, away: AWAY }).await?.0)
    }

    /// The same for who asks again anyway: no controller is an error at once.
    async fn call_once<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let patience = Patience { timeout: CALL_TIMEOUT, away: Duration::ZERO };
        Ok(self.call_bytes(call, None, patience).await?.0)
    }

    /// The same for a call whose answer has bytes behind it.
    async fn call_bytes<T: DeserializeOwned>(
        &self,
        call: Call,
        payload: Option<&[u8]>,
        patience: Patience,
    ) -> Result<(T, Bytes), ClientError> {
        let verb = call.verb();
        let nonce = Nonce::generate();
        let request = Request { v: wire::VERSION, at_ms: now_ms(), nonce, call };
        let body = match payload {
            Some(bytes) => wire::join_head(&request, bytes),
            None => wire::to_bytes(&request),
        };
        if body.len() > limit::API_MESSAGE_MAX {
            return Err(ClientError::TooLarge { bytes: body.len(), max: limit::API_MESSAGE_MAX });
        }
        let envelope = Envelope::seal_bytes(Kind::Request, &self.inner.key, body);
        let (reply, bytes) = self.exchange(verb, envelope, nonce, patience).await?;
        match reply.outcome {
            ReplyOutcome::Ok(answer) => serde_json::from_str(answer.get())
                .map(|answer| (answer, bytes))
                .map_err(|error| ClientError::Shape { verb, cause: error.to_string() }),
            ReplyOutcome::Error(error) => Err(ClientError::Api(error)),
        }
    }

    async fn exchange(
        &self,
        verb: &'static str,
        envelope: Envelope,
        nonce: Nonce,
        Patience { timeout, away }: Patience,
    ) -> Result<(Reply, Bytes), ClientError> {
        let inner = &self.inner;
        let deadline = Instant::now() + timeout;
        let mut slot = inner.mailbox.slot();
        let slot_subject = slot.subject().to_owned();
        let (headers, body) = (envelope.headers(), Bytes::from(envelope.body));
        let subject = inner.prefix.api(verb);
        let send = async || {
            let (to, reply) = (subject.clone(), slot_subject.clone());
            let sent = inner.nats.publish_with_reply_and_headers(to, reply, headers.clone(), body.clone());
            match tokio::time::timeout_at(deadline, sent).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(self.broker_gone(&error.to_string())),
                Err(_) => Err(self.broker_gone("the connection takes no message")),
            }
        };
        send().await?;
        // How often it was sent, how often the broker said that nobody listens, and until when that is no error.
        let (mut sent, mut unheard, mut back_by) = (1, 0, None);
        let mut assembly = Assembly::default();
        let mut doubt: Option<String> = None;
        loop {
            let patience = deadline.min(Instant::now() + SILENCE);
            let message = match tokio::time::timeout_at(patience, slot.next()).await {
                Ok(Some(message)) => message,
                Ok(None) => return Err(self.broker_gone("the connection was closed")),
                Err(_) if Instant::now() >= deadline => return Err(self.no_answer(timeout, doubt)),
                // Lost with a broker or controller that died, perhaps. Saying the same twice does no harm: every
                // request has one effect however often it arrives.
                Err(_) => {
                    send().await?;
                    sent += 1;
                    continue;
                }
            };
            if message.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
                unheard += 1;
                let back_by = *back_by.get_or_insert(deadline.min(Instant::now() + away));
                if Instant::now() + AWAY_PAUSE > back_by {
                    // Said to nobody at all, or to one that has gone since.
                    let detail = if unheard == sent { "" } else { " any more" };
                    return Err(self.no_controller(detail.to_owned()));
                }
                self.notice.say("no controller answers: it may be starting, trying for some seconds");
                tokio::time::sleep(AWAY_PAUSE).await;
                send().await?;
                sent += 1;
                continue;
            }
            let Some((headers, body)) = assembly.push(message.headers, message.payload) else { continue };
            // A stranger's answer is passed over: the true one may still come.
            match self.believe(headers.as_ref(), &body, nonce) {
                Ok(believed) => return Ok(believed),
                Err(cause) => doubt = Some(cause),
            }
        }
    }

    fn believe(
        &self,
        headers: Option<&async_nats::HeaderMap>,
        body: &Bytes,
        nonce: Nonce,
    ) -> Result<(Reply, Bytes), String> {
        let trusted = |key: &PublicKey| self.inner.controllers.contains(key);
        // The line is signed and names the digest of what follows it. JSON has no raw line feed inside.
        let end = body.iter().position(|b| *b == b'\n').unwrap_or(body.len());
        let (line, bytes) = (&body[..end], body.slice((end + 1).min(body.len())..));
        wire::verify(Kind::Reply, headers, line, limit::API_REPLY_MAX, trusted).map_err(|e| e.to_string())?;
        let reply: Reply = wire::read(line).map_err(|e| e.to_string())?;
        if reply.nonce != nonce {
            return Err("it answers another request".to_owned());
        }
        match reply.payload {
            Some(digest) if digest != Digest::of(&bytes) => {
                Err("its bytes are not those it names".to_owned())
            }
            None if end < body.len() => Err("bytes follow it that it does not name".to_owned()),
            _ => Ok((reply, bytes)),
        }
    }

    fn no_answer(&self, timeout: Duration, doubt: Option<String>) -> ClientError {
        if let Some(cause) = doubt {
            return ClientError::NotTrusted { url: self.inner.url.clone(), cause };
        }
        let heard = self.inner.trouble.lock().ok().and_then(|t| t.clone());
        let state = self.inner.nats.connection_state();
        if state != async_nats::connection::State::Connected {
            return self.broker_gone("the connection is lost and does not come back");
        }
        let because = heard.map(|h| format!(": {h}")).unwrap_or_default();
        self.no_controller(format!(" within {} s{because}", timeout.as_secs()))
    }

    fn no_controller(&self, detail: String) -> ClientError {
        ClientError::NoController { url: self.inner.url.clone(), detail }
    }

    fn broker_gone(&self, cause: &str) -> ClientError {
        ClientError::Broker { url: self.inner.url.clone(), cause: cause.to_owned() }
    }
}

/// How long a call waits: for its answer, and of that for a controller to be there at all.
#[derive(Clone, Copy)]
struct Patience {
    timeout: Duration,
    away: Duration,
}

impl Notice {
    fn say(&self, words: &str) {
        if !self.said.swap(true, Ordering::Relaxed) {
            (self.tell)(words);
        }
    }
}

/// Keeps what the broker refused, for the error of the call that then has no answer.
fn note(heard: &Mutex<Option<String>>, event: &ConnectionEvent) {
    let Ok(mut heard) = heard.lock() else { return };
    match event {
        ConnectionEvent::Connected => *heard = None,
        ConnectionEvent::Refused { .. } | ConnectionEvent::Unauthorized { .. } => {
            *heard = Some(event.to_string());
        }
        _ => {}
    }
}

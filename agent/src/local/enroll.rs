//! `sally-agent enroll`: this host becomes an agent.
//!
//! It makes its keys here and sends their public halves; the private ones never leave. Everything is written into the state
//! folder, the broker's credentials last: where they are, enrolment is complete. Asked again after a lost answer, it uses the
//! keys of the first time, so that the controller knows it again.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use nkeys::KeyPair;
use sally_common::clock::{now_ms, rfc3339};
use sally_common::id::Nonce;
use sally_common::key::{KeyError, PublicKey, SigningKey};
use sally_common::limit::SMALL_MESSAGE_MAX;
use sally_common::name::{Agent, BadName};
use sally_common::nats::accounts::enrolment_subjects;
use sally_common::nats::connect::{ConnectError, ConnectSettings, ConnectionEvent, connect};
use sally_common::nats::creds::{Creds, CredsError};
use sally_common::wire::enrol::{BadToken, Enrol, Enrolled, Identity, NotEnrolled, Outcome, Papers, Token};
use sally_common::wire::{self, Kind, VERSION};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config::{self, ConfigError, Places};

/// How long the controller may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// After so long without a word the request is said again.
const SILENCE: Duration = Duration::from_secs(2);
/// The key of the broker's user, until it is part of the credentials.
const USER_SEED: &str = "enroll.user";
/// The token's own credentials, while it is used.
const TOKEN_CREDS: &str = "enroll.creds";
/// Certificates that came with the token.
const CA: &str = "ca.pem";

/// How to enrol.
#[derive(Debug, clap::Args)]
pub struct EnrollArgs {
    /// The token
    #[arg(long, value_name = "TOKEN", required_unless_present = "token_file", conflicts_with = "token_file")]
    token: Option<String>,
    /// A file with the token, or - for standard input: it is not shown to other users of this host
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The agent's name, for life [default: `name` of the configuration, or the host's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The agent's configuration file: says where the state folder is
    #[arg(long, value_name = "FILE", default_value = "/etc/sally/agent.toml")]
    config: PathBuf,
}

/// It is not enrolled.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum EnrollError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Token(#[from] BadToken),
    #[error("cannot {what} {}: {error}", path.display())]
    File { what: &'static str, path: PathBuf, error: std::io::Error },
    #[error("this host is enrolled already: {} is there; to enrol it anew, move it and agent.seed away", .0.display())]
    Already(PathBuf),
    #[error("the token expired at {at} by this host's clock: have another one made, or set the clock")]
    Expired { at: String },
    #[error("the token is for zone {token}, the configuration says zone {configured}")]
    Zone { token: String, configured: String },
    #[error("{0}; give a name with --name")]
    Name(#[from] BadName),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Creds(#[from] CredsError),
    #[error("the token's key is damaged: have another one made")]
    TokenKey,
    #[error("{0}: the token may have expired or be of another broker")]
    Unauthorized(ConnectError),
    #[error(transparent)]
    Connect(ConnectError),
    #[error(
        "the broker does not allow what the token asks for: it is not what was made, have another one made"
    )]
    NotAllowed,
    #[error("no controller answers within {} s: is `sally serve` running?", ANSWER_LIMIT.as_secs())]
    Silent,
    #[error("not enrolled: {0}")]
    Refused(NotEnrolled),
    #[error("what the controller answered is not what was asked for: {0}")]
    Answer(&'static str),
}

impl EnrollError {
    /// Whether the command line, the token or the configuration is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Token(_) | Self::Name(_) | Self::Zone { .. })
    }
}

/// Enrols this host as the command line says; returns what to tell.
///
/// # Errors
/// [`EnrollError`]; what was there before stays.
pub async fn run(args: &EnrollArgs) -> Result<String, EnrollError> {
    let places = config::places(&args.config)?;
    let text = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) if path.as_os_str() == "-" => read_stdin()?,
        (None, path) => read(path.as_deref().unwrap_or(&places.token_file))?,
    };
    let papers = enroll(&places, &Token::parse(&text)?, args.name.as_deref()).await?;
    Ok(format!(
        "this host is agent {}/{}; start it: sally-agent run --config {}\n",
        papers.zone,
        papers.agent,
        args.config.display()
    ))
}

/// At the first start: enrols this host if a token waits for it and it has no credentials yet.
///
/// # Errors
/// [`EnrollError`].
pub async fn at_first_start(config: &Path) -> Result<(), EnrollError> {
    // What is wrong with it is told when it is read to be used.
    let Ok(places) = config::places(config) else { return Ok(()) };
    if places.creds.exists() || !places.token_file.exists() {
        return Ok(());
    }
    let token = Token::parse(&read(&places.token_file)?)?;
    let papers = enroll(&places, &token, None).await?;
    tracing::info!(zone = %papers.zone, agent = %papers.agent, "enrolled");
    if let Err(error) = fs::remove_file(&places.token_file) {
        tracing::warn!(path = %places.token_file.display(), %error, "cannot remove the token, which was used");
    }
    Ok(())
}

async fn enroll(places: &Places, token: &Token, name: Option<&str>) -> Result<Papers, EnrollError> {
    if places.creds.exists() {
        return Err(EnrollError::Already(places.creds.clone()));
    }
    if now_ms() >= token.expires_ms {
        return Err(EnrollError::Expired { at: rfc3339(token.expires_ms) });
    }
    if let Some(zone) = places.zone.as_ref().filter(|zone| *zone != token.zone.as_str()) {
        return Err(EnrollError::Zone { token: token.zone.to_string(), configured: zone.clone() });
    }
    let agent = match name.map(str::to_owned).or_else(|| places.name.clone()) {
        Some(name) => Agent::new(&name)?,
        None => Agent::new(&host_name())?,
    };
    let dir = &places.state_dir;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| EnrollError::File {
        what: "make",
        path: dir.clone(),
        error,
    })?;
    let own = SigningKey::from_seed(&kept(&places.key, || SigningKey::generate().seed())?)?;
    let user = kept(&dir.join(USER_SEED), || KeyPair::new_user().seed().unwrap_or_default())?;
    let user = KeyPair::from_seed(user.trim()).map_err(|_| KeyError::NotSeed)?;

    let asked = Asked { token, own: &own, user: &user.public_key(), agent: &agent };
    let papers = asked.ask(dir).await?;
    write_papers(places, token, &papers, user)?;
    Ok(papers)
}

/// The host's name without its domain, in lower case.
fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    name.split('.').next().unwrap_or_default().to_ascii_lowercase()
}

/// What a host says of itself.
struct Asked<'a> {
    token: &'a Token,
    own: &'a SigningKey,
    user: &'a str,
    agent: &'a Agent,
}

impl Asked<'_> {
    /// Asks until there is an answer.
    async fn ask(&self, dir: &Path) -> Result<Papers, EnrollError> {
        let token = self.token;
        let key = SigningKey::from_seed(&token.key).map_err(|_| EnrollError::TokenKey)?;
        let (ca, creds) = (dir.join(CA), dir.join(TOKEN_CREDS));
        if let Some(pem) = &token.ca {
            write(&ca, pem.as_bytes())?;
        }
        let user = KeyPair::from_seed(&token.user).map_err(|_| EnrollError::TokenKey)?;
        Creds::new(token.jwt.clone(), user).write(&creds)?;
        let answer = self.exchange(&key, &creds, token.ca.is_some().then_some(ca)).await;
        // It is of no use any more, and was a secret.
        let _ = fs::remove_file(&creds);
        answer
    }

    async fn exchange(
        &self,
        key: &SigningKey,
        creds: &Path,
        ca_file: Option<PathBuf>,
    ) -> Result<Papers, EnrollError> {
        let token = self.token;
        let mut settings = ConnectSettings::new(&token.url, creds, format!("enroll {}", self.agent));
        settings.ca_file = ca_file;
        settings.tls_first = token.tls_first;
        let (sender, mut events) = mpsc::channel(16);
        let client = connect(&settings, move |event| {
            // Full means that sixteen wait already, and any of these is enough.
            let _ = sender.try_send(event);
        });
        let client = client.await.map_err(|error| match error {
            error @ ConnectError::Unauthorized { .. } => EnrollError::Unauthorized(error),
            error => EnrollError::Connect(error),
        })?;
        let (ask, hear) = enrolment_subjects(&token.prefix, token.zone.as_str(), &token.id.to_string());
        let broken = |_| EnrollError::Silent;
        let mut answers = client.subscribe(hear).await.map_err(|_| EnrollError::Silent)?;
        let nonce = Nonce::generate();
        let identity = Identity {
            v: VERSION,
            token: token.id,
            zone: token.zone.clone(),
            agent: self.agent.clone(),
            key: self.own.public().clone(),
            user: self.user.to_owned(),
        };
        let request = Enrol::seal(key, self.own, nonce, &identity);
        let until = Instant::now() + ANSWER_LIMIT;
        let mut again = tokio::time::interval(SILENCE);
        loop {
            tokio::select! {
                _ = again.tick() => {
                    let (headers, body) = (request.headers(), request.body.clone().into());
                    client.publish_with_headers(ask.clone(), headers, body).await.map_err(broken)?;
                }
                Some(message) = answers.next() => {
                    if let Some(outcome) = self.judge(&message, nonce)? {
                        return outcome;
                    }
                }
                Some(event) = events.recv() => match event {
                    ConnectionEvent::Refused { .. } => return Err(EnrollError::NotAllowed),
                    ConnectionEvent::Unauthorized { message } => {
                        let (url, creds) = (token.url.clone(), creds.to_owned());
                        tracing::debug!("{message}");
                        return Err(EnrollError::Unauthorized(ConnectError::Unauthorized { url, creds }));
                    }
                    _ => {}
                },
                () = tokio::time::sleep_until(until) => return Err(EnrollError::Silent),
            }
        }
    }

    /// What an answer says; `None` if it is of somebody who is not believed, or of another question.
    fn judge(
        &self,
        message: &async_nats::Message,
        nonce: Nonce,
    ) -> Result<Option<Result<Papers, EnrollError>>, EnrollError> {
        let believed = |key: &PublicKey| self.token.controllers.contains(key);
        let (headers, body) = (message.headers.as_ref(), &message.payload);
        if wire::verify(Kind::Enrolled, headers, body, SMALL_MESSAGE_MAX, believed).is_err() {
            return Ok(None);
        }
        let answer: Enrolled = wire::read(body).map_err(|_| EnrollError::Answer("it cannot be read"))?;
        if answer.nonce != nonce {
            return Ok(None);
        }
        Ok(Some(match answer.outcome {
            Outcome::Refused(reason) => Err(EnrollError::Refused(reason)),
            Outcome::Papers(papers) if papers.zone != self.token.zone || papers.agent != *self.agent => {
                Err(EnrollError::Answer("it is for another agent"))
            }
            Outcome::Papers(papers) => Ok(*papers),
        }))
    }
}

/// Writes what the agent needs, its credentials last.
fn write_papers(places: &Places, token: &Token, papers: &Papers, user: KeyPair) -> Result<(), EnrollError> {
    let mut known = toml::Table::new();
    let mut set = |name: &str, value: toml::Value| drop(known.insert(name.to_owned(), value));
    set("name", papers.agent.as_str().into());
    set("zone", papers.zone.as_str().into());
    set("url", token.url.as_str().into());
    set("prefix", token.prefix.as_str().into());
    set("tls_first", token.tls_first.into());
    if token.ca.is_some() {
        set("ca_file", places.state_dir.join(CA).to_string_lossy().into_owned().into());
    }
    let title =
        "# Written by `sally-agent enroll`. What a person writes into the configuration counts before it.\n";
    write(&places.enrolled, format!("{title}{known}").as_bytes())?;
    let trust = serde_json::to_vec_pretty(&papers.trust).unwrap_or_default();
    write(&places.trust, &trust)?;
    let creds = Creds::new(papers.jwt.clone(), user);
    creds.write(&places.creds)?;
    give(&places.creds, &places.state_dir)?;
    let _ = fs::remove_file(places.state_dir.join(USER_SEED));
    Ok(())
}

/// A secret that is kept in a file, or made and kept there now.
fn kept(path: &Path, make: impl FnOnce() -> String) -> Result<String, EnrollError> {
    if path.exists() {
        return read(path);
    }
    let text = make();
    write(path, format!("{text}\n").as_bytes())?;
    Ok(text)
}

fn read(path: &Path) -> Result<String, EnrollError> {
    fs::read_to_string(path).map_err(|error| EnrollError::File { what: "read", path: path.to_owned(), error })
}

fn read_stdin() -> Result<String, EnrollError> {
    std::io::read_to_string(std::io::stdin()).map_err(|error| EnrollError::File {
        what: "read",
        path: "standard input".into(),
        error,
    })
}

/// Writes a file that only the agent's account may read: beside it, synced, renamed.
fn write(path: &Path, bytes: &[u8]) -> Result<(), EnrollError> {
    let failed = |error| EnrollError::File { what: "write", path: path.to_owned(), error };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    give(&beside, path.parent().unwrap_or(Path::new("/")))?;
    fs::rename(&beside, path).map_err(failed)?;
    let folder = fs::File::open(path.parent().unwrap_or(Path::new("/")));
    folder.and_then(|folder| folder.sync_all()).map_err(failed)
}

/// An administrator enrols as root for an agent that has an account of its own: the file goes to whom its folder belongs.
fn give(path: &Path, folder: &Path) -> Result<(), EnrollError> {
    let failed = |error| EnrollError::File { what: "give away", path: path.to_owned(), error };
    let to = fs::metadata(folder).map_err(failed)?;
    let is = fs::metadata(path).map_err(failed)?;
    if (to.uid(), to.gid()) == (is.uid(), is.gid()) || !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(to.uid()), Some(to.gid())).map_err(failed)
}

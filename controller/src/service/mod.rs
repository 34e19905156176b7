//! The controller's service: one place that submits, dispatches, records, receipts and answers.
//!
//! In reading order:
//! - [`settings`]: what it is given, checked. This file starts and stops it.
//! - [`fleet`]: the agents as the controller sees them. [`records`]: from rows to what people are shown.
//! - [`presence`]: which process speaks for an agent.
//! - [`accounts`]: the broker's accounts, as far as they are this controller's to issue.
//! - [`api`]: what callers ask; [`agents`] what of it is about agents; [`submission`] the one way in for work.
//! - [`dispatch`]: orders bound to agents; [`direct`] those that go past the stream.
//! - [`inbound`]: what agents say; [`output`]: their streams.
//! - [`enrol`]: hosts become agents, and agents cease to be.
//! - [`watchers`]: callers who want to hear of changes. [`chores`]: expiry, nudges, forgetting.
//!
//! The ledger is the source for submissions, the agent for results; the broker is asked for nothing that it
//! could have forgotten.
#![forbid(unsafe_code)]

pub mod accounts;
pub mod agents;
pub mod api;
pub mod chores;
pub mod direct;
pub mod dispatch;
pub mod enrol;
pub mod fleet;
pub mod inbound;
pub mod output;
pub mod presence;
pub mod records;
pub mod settings;
pub mod submission;
pub mod watchers;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use sally_common::id::{LastJobId, Nonce};
use sally_common::key::SigningKey;
use sally_common::nats::accounts::CONTROLLER_INBOX;
use sally_common::nats::connect::{ConnectSettings, PROMPT_PAUSE_MAX, connect};
use sally_common::notify::{self, Watchdog};
use sally_common::subject::{Channel, Prefix};
use sally_common::trust::TrustList;
use sally_common::wire::Envelope;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::broker::streams::provision;
use crate::ledger::Ledger;
use crate::store::{BlobSettings, Blobs, LogSettings, Logs};
use fleet::Fleet;
use settings::Settings;
use watchers::Watchers;

/// Messages of one kind that are worked on at the same time. The ledger commits them together.
const AT_ONCE: usize = 256;
/// How long after a stream could not be made it is tried again.
const STREAMS_PAUSE: Duration = Duration::from_secs(1);
/// How often the loop goes round at least.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Controllers share the work by this queue group.
const QUEUE_GROUP: &str = "controller";

/// Why the service cannot run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum ServiceError {
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error(transparent)]
    Connect(#[from] sally_common::nats::connect::ConnectError),
    #[error(transparent)]
    Streams(#[from] crate::broker::streams::StreamsError),
    #[error("issuer: {0}")]
    Issuer(#[from] sally_common::nats::accounts::TrustError),
    #[error("cannot read {subject}: {error}")]
    Subscribe { subject: String, error: String },
}

/// What every part of the service uses.
pub struct Service {
    key: SigningKey,
    trust: RwLock<Arc<TrustList>>,
    prefix: Prefix,
    client: async_nats::Client,
    ledger: Ledger,
    blobs: Blobs,
    logs: Logs,
    fleet: Mutex<Fleet>,
    watchers: Mutex<Watchers>,
    last_job: LastJobId,
    orders: Mutex<dispatch::Orders>,
    output: output::Output,
    accounts: accounts::Accounts,
    /// Counts changes of accounts that the broker is to be given.
    accounts_changed: watch::Sender<u64>,
    /// Who waits for answers to probes.
    probes: Mutex<Probes>,
    /// Where the broker says that nobody heard a direct dispatch; a run and an attempt follow.
    nobody: String,
}

type Probes = HashMap<Nonce, mpsc::Sender<agents::Pong>>;

impl Service {
    fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who may submit, as it was read last.
    fn trust(&self) -> Arc<TrustList> {
        self.trust.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes what may change while the service runs: who may submit, and who is enrolled.
    async fn reload(&self, settings: Settings) {
        *self.trust.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings.trust);
        if let Err(error) = self.accounts.take(&self.prefix, settings.issuer.as_ref()) {
            tracing::error!(%error, "the issuer stays as it was");
        }
        self.accounts_changed.send_modify(|n| *n += 1);
        let members = match enrol::members(&self.ledger, settings.agents).await {
            Ok(members) => members,
            Err(error) => return tracing::error!(%error, "the list of agents stays as it was"),
        };
        let (came, went) = self.fleet().enrol(members);
        tracing::info!(came, went, "agents are enrolled as the list says now");
    }

    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn publish(&self, subject: String, envelope: Envelope) {
        let headers = envelope.headers();
        if let Err(error) = self.client.publish_with_headers(subject, headers, envelope.body.into()).await {
            tracing::warn!(%error, "could not publish");
        }
    }
}

/// Serves until `stop` is set. What comes by `reload` are the settings read anew.
pub async fn run(
    settings: Settings,
    mut stop: watch::Receiver<bool>,
    mut reload: mpsc::Receiver<Settings>,
) -> Result<(), ServiceError> {
    let ledger = Ledger::open(settings.data_dir.join("ledger.db")).await?;
    let bounds = settings.bounds.clone();
    let blobs = BlobSettings {
        max_bytes: bounds.blobs_bytes,
        max_age: days(bounds.blobs_days),
        ..BlobSettings::default()
    };
    let blobs = Blobs::open(settings.data_dir.join("blobs"), blobs).await?;
    let logs = LogSettings {
        max_bytes: bounds.logs_bytes,
        max_age: days(bounds.logs_days),
        ..LogSettings::default()
    };
    let logs = Logs::open(settings.data_dir.join("logs"), logs).await?;
    let members = enrol::members(&ledger, settings.agents.clone()).await?;
    let mut fleet = Fleet::new(members, ledger.agents().await?);
    fleet.note(&ledger.drained().await?, &ledger.agents_behind().await?);

    let mut connection = ConnectSettings::new(&settings.url, &settings.creds, "controller");
    connection.inbox_prefix = Some(CONTROLLER_INBOX.to_owned());
    connection.retry_on_initial_connect = true;
    connection.pause_max = PROMPT_PAUSE_MAX;
    connection.ca_file.clone_from(&settings.ca_file);
    connection.tls_first = settings.tls_first;
    let revoked = enrol::revoked_users(&ledger).await?;
    let target = accounts::target(
        &settings.url,
        settings.accounts_creds.clone(),
        settings.ca_file.clone(),
        settings.tls_first,
    );
    let accounts = accounts::Accounts::new(&settings.prefix, settings.issuer.as_ref(), revoked, target)?;
    let (connected, reconnected) = watch::channel(0u64);
    let client = connect(&connection, move |event| {
        tracing::info!("{event}");
        if event == sally_common::nats::connect::ConnectionEvent::Connected {
            connected.send_modify(|n| *n += 1);
        }
    })
    .await?;
    let nobody = client.new_inbox();
    let service = Arc::new(Service {
        key: settings.key,
        trust: RwLock::new(Arc::new(settings.trust)),
        prefix: settings.prefix,
        client,
        ledger,
        blobs,
        logs,
        fleet: Mutex::new(fleet),
        watchers: Mutex::default(),
        last_job: LastJobId::default(),
        orders: Mutex::default(),
        output: output::Output::default(),
        accounts,
        accounts_changed: watch::channel(0).0,
        probes: Mutex::default(),
        nobody,
    });

    let mut tasks = JoinSet::new();
    for channel in [Channel::Result, Channel::State, Channel::Heartbeat, Channel::Ask] {
        let subject = service.prefix.all(channel);
        let messages = subscribe(&service, subject).await?;
        let service = service.clone();
        tasks.spawn(each(messages, stop.clone(), move |message| {
            let service = service.clone();
            async move { inbound::receive(&service, channel, &message).await }
        }));
    }
    let pieces = subscribe(&service, service.prefix.all(Channel::Log)).await?;
    tasks.spawn(output::serve(service.clone(), pieces, stop.clone()));
    let requests = subscribe(&service, service.prefix.api(">")).await?;
    tasks.spawn(each(requests, stop.clone(), {
        let service = service.clone();
        move |message| {
            let service = service.clone();
            async move { api::answer(&service, message).await }
        }
    }));
    let hosts = subscribe(&service, format!("{}.enroll.>", service.prefix.as_str())).await?;
    tasks.spawn(each(hosts, stop.clone(), {
        let service = service.clone();
        move |message| {
            let service = service.clone();
            async move { enrol::answer(&service, message).await }
        }
    }));
    let nobody = subscribe(&service, format!("{}.>", service.nobody)).await?;
    tasks.spawn(direct::serve(service.clone(), nobody, stop.clone()));
    tasks.spawn(chores::serve(service.clone(), bounds, stop.clone()));
    tasks.spawn(accounts::keep(
        service.clone(),
        reconnected.clone(),
        service.accounts_changed.subscribe(),
        stop.clone(),
    ));
    tasks.spawn(keep_streams(service.clone(), reconnected, stop.clone()));
    tracing::info!(ledger = service.ledger.id(), "serving");

    notify::ready("serves");
    let mut watchdog = Watchdog::of_environment();
    let mut turn = tokio::time::interval(watchdog.every().unwrap_or(LOOK_EVERY).min(LOOK_EVERY));
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            _ = turn.tick() => watchdog.feed(),
            Some(settings) = reload.recv() => service.reload(settings).await,
            ended = tasks.join_next() => {
                if !*stop.borrow() {
                    // A part that ended by itself is a fault of ours: better to end and be started anew.
                    tracing::error!(?ended, "a part of the service ended");
                }
                break;
            }
        }
    }
    notify::stopping();
    tasks.shutdown().await;
    service.ledger.close().await;
    Ok(())
}

fn days(n: u32) -> Duration {
    Duration::from_secs(u64::from(n) * 24 * 3600)
}

/// Makes the streams after every connection: a broker that was away may have lost them. Without them no dispatch
/// reaches anyone, so what fails is tried again until it is done.
async fn keep_streams(
    service: Arc<Service>,
    mut connected: watch::Receiver<u64>,
    mut stop: watch::Receiver<bool>,
) {
    let mut done = true;
    loop {
        tokio::select! {
            changed = connected.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(STREAMS_PAUSE), if !done => {}
            _ = stop.changed() => return,
        }
        done = tokio::select! {
            done = provision_stream(&service) => done,
            _ = stop.changed() => return,
        };
    }
}

/// Returns whether the stream is as it should be.
async fn provision_stream(service: &Service) -> bool {
    let js = async_nats::jetstream::new(service.client.clone());
    let done = provision(&js, service.prefix.as_str()).await;
    if let Err(error) = &done {
        tracing::warn!(%error, "cannot make the stream");
    }
    done.is_ok()
}

async fn subscribe(service: &Service, subject: String) -> Result<async_nats::Subscriber, ServiceError> {
    let subscribed = service.client.queue_subscribe(subject.clone(), QUEUE_GROUP.to_owned()).await;
    subscribed.map_err(|e| ServiceError::Subscribe { subject, error: e.to_string() })
}

/// Works on each message, many at the same time, until `stop` is set.
async fn each<F>(
    mut messages: async_nats::Subscriber,
    mut stop: watch::Receiver<bool>,
    work: impl Fn(async_nats::Message) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { break };
        let message = tokio::select! {
            message = messages.next() => message,
            _ = stop.changed() => None,
        };
        let Some(message) = message else { break };
        let working = work(message);
        tasks.spawn(async move {
            working.await;
            drop(permit);
        });
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

//! What the agent's loop and its runs share: identity, journal, connection, launcher.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use sally_common::clock::now_ms;
use sally_common::id::Nonce;
use sally_common::secret::CurveKey;
use sally_common::subject::Channel;
use sally_common::wire::command::To;
use sally_common::wire::report::From;
use sally_common::wire::{Envelope, Kind};
use serde::Serialize;
use tokio::time::Instant;

use crate::config::Config;
use crate::delivery::journal::{Journal, JournalError};
use crate::sandbox::{Launcher, RunFolder};

/// See the module.
pub struct Shared {
    /// The configuration with which this process began. What a reload changes is in [`Shared::policy`].
    pub config: Config,
    /// The configuration as it was read last.
    policy: RwLock<Arc<Config>>,
    /// This agent as controllers address it, in the incarnation in which it began.
    begun_as: To,
    /// This process: another one with the same identity has another.
    pub instance: Nonce,
    /// Opens what was sealed for this agent.
    pub curve: CurveKey,
    /// The connection.
    pub client: async_nats::Client,
    /// The way to the keepers.
    pub launcher: Launcher,
    /// The folder of run folders.
    pub runs_dir: PathBuf,
    journal: Mutex<Journal>,
    clock: Mutex<ControllerClock>,
    lost: Mutex<BTreeMap<String, u64>>,
    spares: Mutex<Spares>,
}

/// Emptied run folders, so that a run needs no new files.
#[derive(Debug, Default)]
struct Spares {
    ready: Vec<PathBuf>,
    count: u64,
}

/// The journal's file in the state folder.
pub const JOURNAL: &str = "journal.redb";

/// Emptied run folders that are kept.
const SPARES_KEPT: usize = 16;

/// The last signed controller time and when it was heard, on the monotonic clock.
#[derive(Debug, Clone, Copy)]
struct ControllerClock {
    said_ms: i64,
    heard: Instant,
}

impl Shared {
    /// Joins the parts.
    pub fn new(
        config: Config,
        me: To,
        curve: CurveKey,
        client: async_nats::Client,
        launcher: Launcher,
        journal: Journal,
    ) -> Self {
        let runs_dir = config.state_dir.join("runs");
        // What another process had put aside is not known to be whole.
        let spare_dir = config.state_dir.join("spare");
        super::run::files::remove_dir(&spare_dir);
        crate::kept::remove_parts(&config.state_dir);
        crate::kept::sweep(&config.state_dir, &config.keep);
        if let Err(error) = std::fs::create_dir(&spare_dir) {
            tracing::warn!(%error, dir = %spare_dir.display(), "cannot make a folder");
        }
        let clock = ControllerClock { said_ms: i64::MIN / 2, heard: Instant::now() };
        Shared {
            policy: RwLock::new(Arc::new(config.clone())),
            config,
            begun_as: me,
            curve,
            instance: Nonce::generate(),
            client,
            launcher,
            runs_dir,
            journal: Mutex::new(journal),
            clock: Mutex::new(clock),
            lost: Mutex::default(),
            spares: Mutex::default(),
        }
    }

    /// The journal. Its methods only queue; nobody waits under this lock.
    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may change while the agent runs: whom it believes, what it allows, how much a run may use, its labels.
    pub fn policy(&self) -> Arc<Config> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a configuration that was read anew.
    pub fn set_policy(&self, config: Config) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// This agent as controllers address it.
    pub fn me(&self) -> To {
        To { incarnation: self.journal().incarnation(), ..self.begun_as.clone() }
    }

    /// Who reports, with the next number.
    pub fn from(&self) -> From {
        let mut journal = self.journal();
        // The write ahead of the counter is asked for half a step early; nobody needs to wait for it.
        let (counter, _written) = journal.next_counter();
        let (zone, agent) = (self.config.zone.clone(), self.config.name.clone());
        let (incarnation, journal) = (journal.incarnation(), Some(journal.commits()));
        From { zone, agent, incarnation, counter, journal }
    }

    /// The size of the journal's file.
    pub fn journal_bytes(&self) -> Option<u64> {
        Some(std::fs::metadata(self.config.state_dir.join(JOURNAL)).ok()?.len())
    }

    /// Takes a new incarnation, which counts once it is on disk.
    pub async fn renew(&self) -> Result<(), JournalError> {
        let (incarnation, written) = self.journal().renew();
        written.wait().await?;
        self.journal().renewed(incarnation);
        Ok(())
    }

    /// Signs a report and gives it to the connection. Whether it arrives is learned from the answer, if the
    /// kind has one; a connection that is away buffers a bounded number and drops what it cannot.
    pub async fn report<T: Serialize>(&self, channel: Channel, kind: Kind, message: &T) {
        self.publish(channel, Envelope::seal(kind, &self.config.key, message)).await;
    }

    /// Publishes an envelope on one of the agent's own subjects.
    pub async fn publish(&self, channel: Channel, envelope: Envelope) {
        let subject = self.config.prefix.agent(channel, &self.config.zone, &self.config.name);
        let headers = envelope.headers();
        if let Err(error) = self.client.publish_with_headers(subject, headers, envelope.body.into()).await {
            tracing::warn!(%error, kind = %kind_word(envelope.kind), "could not publish");
        }
    }

    /// Publishes an unsigned piece of a stream.
    pub async fn publish_piece(&self, body: Vec<u8>) {
        let subject = self.config.prefix.agent(Channel::Log, &self.config.zone, &self.config.name);
        if let Err(error) = self.client.publish(subject, body.into()).await {
            tracing::warn!(%error, "could not publish a piece of output");
        }
    }

    /// Notes a signed controller time.
    pub fn heard(&self, said_ms: i64) {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if said_ms > clock.said_ms {
            *clock = ControllerClock { said_ms, heard: Instant::now() };
        }
    }

    /// The later of the local clock and the last signed controller time, Unix milliseconds: a clock that
    /// was set back does not make an expired order good again.
    pub fn now_ms(&self) -> i64 {
        let clock = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let since = i64::try_from(clock.heard.elapsed().as_millis()).unwrap_or(i64::MAX);
        now_ms().max(clock.said_ms.saturating_add(since))
    }

    /// An emptied run folder, if there is one.
    pub fn take_spare(&self) -> Option<PathBuf> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner).ready.pop()
    }

    /// Empties a settled run's folder for another run, or removes it.
    pub fn put_aside(&self, dir: &std::path::Path) {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        if spares.ready.len() < SPARES_KEPT
            && let Ok(folder) = RunFolder::open(dir)
        {
            spares.count += 1;
            let spare = self.config.state_dir.join("spare").join(spares.count.to_string());
            if folder.empty(&spare, &super::run::files::OWN_FILES).is_ok() {
                return spares.ready.push(spare);
            }
        }
        super::run::files::remove_dir(dir);
    }

    /// Counts a loss, by kind. Shown in the heartbeat.
    pub fn count_loss(&self, kind: &str) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        *lost.entry(kind.to_owned()).or_insert(0) += 1;
    }

    /// Every loss so far.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn kind_word(kind: Kind) -> &'static str {
    kind.word()
}

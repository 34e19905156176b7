//! One run on its way: from an admitted dispatch to the controller's receipt. One task each.
//!
//! ```text
//! fetch what the order names → plan → sandbox and *started* mark side by side → go
//!   → tail output → exit record → result into the spool, beside its publication → receipt
//! ```
//!
//! - [`mod@start`]: up to the word "go"; `follow`: while it runs; [`conclude`]: its end as a result's body;
//!   `artifacts`: files that the script left behind; `deliver`: spool, publication, receipt.
//! - [`secrets`]: sealed, opened, masked.
//! - [`files`]: the agent's own files in the run folder.
#![forbid(unsafe_code)]

mod artifacts;
pub mod conclude;
mod deliver;
pub mod files;
mod follow;
pub mod secrets;
pub mod start;

use std::path::PathBuf;
use std::sync::Arc;

use sally_common::clock::now_ms;
use sally_common::id::{Digest, RunId};
use sally_common::subject::Channel;
use sally_common::wire::order::{Order, OrderSignature};
use sally_common::wire::report::{News, State};
use sally_common::wire::{Kind, Refusal, VERSION};
use tokio::sync::{mpsc, watch};

use super::blob;
use super::outcome::Ending;
use super::shared::Shared;
use crate::delivery::memory::{Ended, Known};
use crate::sandbox::{self, Event, RunFolder};
use files::{Note, remove_dir};
use follow::Live;
use start::Stop;

/// An admitted dispatch.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// After this it must not start.
    pub expires_ms: i64,
    /// The order.
    pub order: Arc<Order>,
    /// Its digest.
    pub order_digest: Digest,
    /// Who signed it.
    pub signatures: Vec<OrderSignature>,
}

/// What the loop tells a run.
#[derive(Debug)]
pub enum Word {
    /// End it.
    Cancel {
        /// Without TERM.
        hard: bool,
    },
    /// The controller has stored a stream up to here.
    Stored {
        /// Which.
        stream: String,
        /// How much.
        bytes: u64,
    },
    /// The controller has committed the result.
    Receipt {
        /// The digest of the result's body.
        digest: Digest,
    },
    /// Say again what you owe.
    Again,
    /// Nobody took the result for so long that it is given up.
    GiveUp,
    /// Give it back if it has not started, and why.
    Yield(&'static str),
}

/// What a run tells the loop.
#[derive(Debug)]
pub enum Milestone {
    /// The slot can be used again.
    SlotFree {
        /// The run.
        run: RunId,
        /// The slot.
        slot: u16,
    },
    /// The slot can be used again, but better not first: no run could be started there.
    SlotDoubtful(u16),
    /// The mark is on disk.
    Started(RunId, u32),
    /// The result waits for its receipt.
    Finished {
        /// The run.
        run: RunId,
        /// The attempt.
        attempt: u32,
        /// Its bytes, with the output that waits beside it.
        bytes: u64,
        /// Since when, by the wall clock, Unix milliseconds.
        since_ms: i64,
    },
    /// Nothing was started and nothing will be under this attempt.
    Closed(RunId, u32, Refusal),
    /// Nothing was started; the controller may send it again. What was known of the run before counts again.
    GivenBack(RunId, u32, Option<Known>),
    /// The controller has the result.
    Receipted(RunId, u32, Option<Ended>),
    /// Route blob pieces of this digest to the run.
    WantBlob(Digest, mpsc::Sender<blob::Piece>),
    /// An order that did not fit its dispatch has been fetched.
    Order(Box<sally_common::wire::command::Dispatch>, Vec<u8>),
    /// An order could not be fetched in time.
    NoOrder,
}

/// Everything a run's task holds.
pub struct Run {
    shared: Arc<Shared>,
    note: Note,
    words: mpsc::Receiver<Word>,
    milestones: mpsc::Sender<Milestone>,
    connected: watch::Receiver<u64>,
    /// Whether the keeper is known to be done with the run folder.
    reusable: bool,
    /// What is masked in all that leaves: the attempt's secrets.
    masks: Vec<String>,
    /// The secrets cannot be opened any more, so nothing that the script wrote may leave.
    withheld: bool,
}

impl Run {
    /// Joins the parts.
    pub fn new(
        shared: Arc<Shared>,
        note: Note,
        words: mpsc::Receiver<Word>,
        milestones: mpsc::Sender<Milestone>,
        connected: watch::Receiver<u64>,
    ) -> Self {
        let (reusable, masks, withheld) = (false, Vec::new(), false);
        Run { shared, note, words, milestones, connected, reusable, masks, withheld }
    }

    /// Runs an admitted dispatch to its receipt.
    pub async fn execute(mut self, admitted: Admitted, slot: u16) {
        let begun = self.begin(&admitted, slot).await;
        let body = match begun {
            Ok(mut live) => {
                let ended = self.follow(&mut live).await;
                self.tell(Milestone::SlotFree { run: self.note.run.clone(), slot }).await;
                let body = self.conclude(&mut live, ended).await;
                self.reusable = ended == Event::Exited;
                return self.owe(body, live.into_streams()).await;
            }
            Err(Stop::Failed(ending)) => self.bare_result(ending),
            Err(Stop::Refused(reason, message)) => {
                self.free(slot).await;
                self.refuse(reason, message).await;
                return;
            }
            Err(Stop::GivenBack(message)) => {
                self.tell(Milestone::SlotDoubtful(slot)).await;
                return self.give_back(&message).await;
            }
            Err(Stop::ForNow(error)) => {
                self.tell(Milestone::SlotDoubtful(slot)).await;
                return self.give_back(&error.to_string()).await;
            }
        };
        self.free(slot).await;
        self.owe(body, Vec::new()).await;
    }

    /// Goes on with an attempt that another agent process began.
    pub async fn adopt(mut self, folder: RunFolder, slot: u16) {
        let body = match folder.events() {
            Ok(events) => {
                self.open_again();
                let mut live = Live::adopted(folder, events, &self.masks);
                if self.withheld {
                    live.withhold();
                }
                let ended = self.follow(&mut live).await;
                self.free(slot).await;
                if live.announce_at.is_some() && never_started(&live.folder) {
                    return self.give_back("the agent went away before the program started").await;
                }
                let body = self.conclude(&mut live, ended).await;
                return self.owe(body, live.into_streams()).await;
            }
            Err(error) => {
                let ending =
                    Ending::interrupted(format!("its run folder cannot be read after a restart: {error}"));
                self.bare_result(ending)
            }
        };
        self.free(slot).await;
        self.owe(body, Vec::new()).await;
    }

    /// Settles an attempt that was marked as started and of which nothing else is left.
    pub async fn interrupted(mut self) {
        let ending =
            Ending::interrupted("the host or its keeper went down under it; it may have run in part");
        let body = self.bare_result(ending);
        self.owe(body, Vec::new()).await;
    }

    /// Gives back an attempt whose program was never let go: its last agent process died before it said so.
    pub async fn never_released(self) {
        self.give_back("the agent went away before the program started").await;
    }

    /// Nothing was started under this attempt and nothing will be, until the controller sends it again.
    async fn give_back(&self, message: &str) {
        tracing::warn!(run = %self.note.run, message, "gave a run back");
        self.forget().await;
        self.news(News::Deferred { reason: Refusal::GivenBack, message: Some(message.to_owned()) }).await;
        self.tell(Milestone::GivenBack(self.note.run.clone(), self.note.attempt, self.note.before)).await;
    }

    /// Takes the *started* mark back, then removes the folder: a mark without a folder would be a program that
    /// may have run.
    async fn forget(&self) {
        let forgotten = self.shared.journal().unstarted(&self.note.run, self.note.before);
        match forgotten.wait().await {
            Ok(()) => remove_dir(&self.dir()),
            Err(error) => {
                tracing::error!(run = %self.note.run, %error, "cannot take a mark back; its folder says that nothing ran");
                self.shared.count_loss("journal-write");
            }
        }
    }

    /// Opens the secrets of an attempt that another agent process began, to mask them.
    fn open_again(&mut self) {
        let Some(sealed) = &self.note.sealed else { return };
        match sealed.open(&self.shared.curve) {
            Ok(opened) => self.masks = secrets::masks(&opened),
            Err(error) => {
                tracing::error!(run = %self.note.run, "cannot mask what a run writes any more, so it is withheld: {error}");
                self.withheld = true;
            }
        }
    }

    /// Goes on owing a result that is in the spool.
    pub async fn resume_owing(mut self, body: Vec<u8>) {
        let owed = self.reopen(body);
        self.deliver(owed).await;
    }

    async fn free(&self, slot: u16) {
        self.tell(Milestone::SlotFree { run: self.note.run.clone(), slot }).await;
    }

    async fn tell(&self, milestone: Milestone) {
        // The loop is gone only when the agent stops; then nobody needs to know.
        let _ = self.milestones.send(milestone).await;
    }

    async fn news(&self, news: News) {
        let state = State {
            v: VERSION,
            from: self.shared.from(),
            run: self.note.run.clone(),
            attempt: self.note.attempt,
            at_ms: now_ms(),
            news,
        };
        self.shared.report(Channel::State, Kind::State, &state).await;
    }

    async fn refuse(&self, reason: Refusal, message: String) {
        let note = &self.note;
        let written = self.shared.journal().closed(&note.run, note.attempt, note.expires_ms, reason);
        if written.wait().await.is_err() {
            // Not on disk: refusing again after a restart is harmless, the order has not run.
            self.shared.count_loss("journal-write");
        }
        self.tell(Milestone::Closed(self.note.run.clone(), self.note.attempt, reason)).await;
        self.news(News::Refused { reason, message }).await;
    }

    fn dir(&self) -> PathBuf {
        self.shared.runs_dir.join(format!("{}.{}", self.note.run, self.note.attempt))
    }
}

/// Whether the keeper says that the program was never let go.
fn never_started(folder: &RunFolder) -> bool {
    let record = folder.exit_record().ok().flatten();
    record.is_some_and(|record| record.outcome == sandbox::Outcome::NotStarted)
}

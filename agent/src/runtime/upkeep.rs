//! What is due now and then: draining, room on the disk, lost questions, forgetting, the status file; and the end.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use sally_common::clock::now_ms;
use sally_common::wire::command::RunAttempt;
use sally_common::wire::report::Slots;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::run::{Milestone, Word};
use super::speak::{ASK_AGAIN, ASK_AGAIN_AT_BOOT};
use super::status::{self, Status};
use super::{Agent, heartbeat};
use crate::delivery::memory::Phase;
use crate::delivery::room::{self, NoRoom};
use crate::kept;

/// How often what the state folder holds is added up. In between, what runs has its room reserved.
const ADD_UP_EVERY: Duration = Duration::from_secs(10);
/// How often work folders that are kept are looked through for old ones.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How long the end waits for runs that are given back.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(2);
/// Runs named in the status file.
const RUNS_NAMED: usize = 256;

impl Agent {
    pub(super) async fn tick(&mut self) {
        let patience = if self.open { ASK_AGAIN } else { ASK_AGAIN_AT_BOOT };
        if self.asked.is_some_and(|asked| asked.at.elapsed() > patience) {
            self.asked = None;
            self.more = true;
        }
        let overdue = self.doorstep.overdue(Instant::now());
        self.turn_away(overdue).await;
        self.look_for_draining();
        self.measure();
        self.give_up_old();
        self.sweep_kept();
        if std::mem::take(&mut self.tell_soon) {
            self.heartbeat(None, None).await;
        }
        let old = self.memory.prunable(now_ms());
        if !old.is_empty() {
            for run in &old {
                self.memory.forget(run);
            }
            // Losing this write only keeps them longer.
            drop(self.shared.journal().prune(old));
        }
        self.write_status();
    }

    /// The configuration is another one: controllers hear of it, and what was turned down for want of room may fit.
    pub(super) fn reloaded(&mut self) {
        self.tell_soon = true;
        self.more = true;
        self.told = None;
        self.measure();
    }

    fn look_for_draining(&mut self) {
        let draining = status::is_draining(&self.shared.config.state_dir);
        if draining != self.draining {
            tracing::info!(draining, "somebody on this host changed it");
            self.draining = draining;
            self.tell_soon = true;
            self.more |= !draining;
        }
    }

    /// Looks how much room there is. Without room for a free slot the controller is told why.
    pub(super) fn measure(&mut self) {
        self.measured.free = heartbeat::disk_free(&self.shared.config.state_dir);
        self.add_up();
        let why = self.no_room().filter(|_| !self.free.is_empty()).map(|why| why.to_string());
        if why.is_some() == self.deferring.is_some() {
            return;
        }
        match &why {
            Some(why) => tracing::warn!("takes nothing new: {why}"),
            None => tracing::info!("takes work again: there is room"),
        }
        self.more |= why.is_none();
        self.tell_soon = true;
        self.deferring = why;
    }

    /// Adds up the state folder in another thread, now and then, and only while something may change in it.
    fn add_up(&mut self) {
        if let Some(adding) = self.adding_up.take() {
            if !adding.is_finished() {
                self.adding_up = Some(adding);
                return;
            }
            use futures_util::FutureExt as _;
            if let Some(Ok(used)) = adding.now_or_never() {
                self.measured.used = used;
            }
        }
        let idle = self.runs.is_empty() && self.measured.used > 0 && self.deferring.is_none();
        if !idle && (self.measured.used == 0 || self.added_up.elapsed() > ADD_UP_EVERY) {
            self.added_up = Instant::now();
            let dir = self.shared.config.state_dir.clone();
            self.adding_up = Some(tokio::task::spawn_blocking(move || size_of(&dir)));
        }
    }

    /// Why not even one more run may be admitted, if so.
    pub(super) fn no_room(&self) -> Option<NoRoom> {
        room::admits(&self.shared.policy().storage, self.measured, self.used_slots()).err()
    }

    /// How many more runs there is room for, in slots and on the disk.
    pub(super) fn room(&self) -> u32 {
        let storage = self.shared.policy().storage;
        let free = u32::try_from(self.free.len()).unwrap_or(u32::MAX);
        (0..free)
            .take_while(|more| room::admits(&storage, self.measured, self.used_slots() + more).is_ok())
            .fold(0, |count, _| count + 1)
    }

    pub(super) fn used_slots(&self) -> u32 {
        u32::from(self.slots).saturating_sub(u32::try_from(self.free.len()).unwrap_or(0))
    }

    /// Removes work folders that were kept for long enough, in another thread. A run that is kept makes its room itself.
    fn sweep_kept(&mut self) {
        if self.swept.elapsed() > SWEEP_EVERY {
            self.swept = Instant::now();
            let config = self.shared.policy();
            let (dir, bounds) = (config.state_dir.clone(), config.keep);
            // Nobody needs its end; that of the runtime waits for it.
            drop(tokio::task::spawn_blocking(move || kept::sweep(&dir, &bounds)));
        }
    }

    /// Gives results up that nobody has taken for so long that keeping them is not worth the room any more.
    fn give_up_old(&self) {
        let until = now_ms().saturating_sub(self.shared.policy().storage.spool_max_age_ms);
        for (key, _) in self.owed.iter().filter(|(_, (_, since_ms))| *since_ms < until) {
            self.pass(&key.run, key.attempt, Word::GiveUp);
        }
    }

    fn write_status(&mut self) {
        let of_phase = |phase: Phase| self.memory.held().filter(move |(_, k)| k.phase == phase);
        let config = &self.shared.config;
        let running = of_phase(Phase::Started).take(RUNS_NAMED);
        let status = Status {
            zone: config.zone.clone(),
            agent: config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            instance: self.shared.instance,
            written_ms: now_ms(),
            welcome: self.open,
            draining: self.draining,
            deferring: self.deferring.clone(),
            slots: Slots { used: self.used_slots(), total: u32::from(self.slots) },
            accepted: of_phase(Phase::Accepted).count() as u64,
            running: running.map(|(r, k)| RunAttempt { run: r.clone(), attempt: k.attempt }).collect(),
            spool: self.spool_status(),
            used_bytes: self.measured.used,
            lost: self.shared.losses(),
            last_contact_ms: self.last_contact_ms,
            last_error: self.last_error.clone(),
        };
        if self.told.as_ref().is_some_and(|told| !status.is_news(told)) {
            return;
        }
        sally_common::notify::status(&status.words());
        if let Err(error) = status.write(&config.state_dir) {
            tracing::debug!(%error, "cannot write the status file");
        }
        self.told = Some(status);
    }

    /// The planned end: what has not started is given back, then the controller hears a goodbye. What runs goes on
    /// under its keepers, and the next agent process takes it over.
    pub(super) async fn stop(&mut self, milestones: &mut mpsc::Receiver<Milestone>) {
        self.open = false;
        self.yield_accepted("the agent stops");
        let visitors = self.doorstep.take_all();
        self.turn_away(visitors).await;
        let until = Instant::now() + GIVE_BACK_LIMIT;
        while self.memory.held().any(|(_, known)| known.phase == Phase::Accepted) {
            match timeout_at(until, milestones.recv()).await {
                Ok(Some(milestone)) => self.reached(milestone).await,
                _ => {
                    tracing::warn!("runs that have not started could not be given back in time");
                    break;
                }
            }
        }
        self.heartbeat(None, Some("stop")).await;
        self.write_status();
    }
}

/// Bytes on disk below a folder. What vanishes meanwhile does not count.
fn size_of(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => metadata.blocks() * 512 + size_of(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_added_up_with_what_is_below() {
        let dir = tempfile::tempdir().expect("a folder");
        let empty = size_of(dir.path());
        std::fs::create_dir_all(dir.path().join("a/b")).expect("made");
        std::fs::write(dir.path().join("a/b/file"), vec![1; 100_000]).expect("written");
        assert!(size_of(dir.path()) >= empty + 100_000);
        assert_eq!(size_of(&dir.path().join("absent")), 0);
    }
}

//! After a restart: what journal and run folders hold is taken up again.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::path::Path;

use sally_common::clock::now_ms;
use sally_common::id::{Digest, RunId};
use sally_common::wire::command::RunAttempt;
use tokio::sync::mpsc;

use super::run::files::{self, Note};
use super::run::{Run, Word};
use super::{Agent, NO_SLOT, heartbeat};
use crate::delivery::journal::Recovered;
use crate::delivery::memory::{Known, Phase};
use crate::sandbox::RunFolder;

/// Words that may wait for one run: receipts of its pieces above all.
const WORDS: usize = 256;

/// What a run folder is to this agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// Never marked as started, or settled: nothing is owed from it.
    None,
    /// Of an attempt that the journal knows as started.
    OfJournal,
    /// Of an attempt that was let go, which is never done before the mark is on disk, and that the journal does not know:
    /// it is not the one that had the mark, or is an older copy of it.
    OfLostJournal,
}

fn claim(attempt: u32, known: Option<Known>, released: bool) -> Claim {
    match known {
        Some(known) if known.attempt == attempt && known.phase == Phase::Started => Claim::OfJournal,
        Some(known) if known.attempt >= attempt => Claim::None,
        _ if released => Claim::OfLostJournal,
        _ => Claim::None,
    }
}

impl Agent {
    /// Takes up what the journal and the run folders hold.
    pub(super) async fn recover(&mut self, recovered: Recovered) {
        self.memory = recovered.memory;
        let mut taken: HashSet<(RunId, u32)> = HashSet::new();
        for spooled in recovered.spool {
            let known = self.memory.get(&spooled.run);
            let note = self.note(&spooled.run, spooled.attempt, known);
            taken.insert((spooled.run.clone(), spooled.attempt));
            let (run, words) = self.task(note);
            self.runs.insert(RunAttempt { run: spooled.run, attempt: spooled.attempt }, words);
            self.tasks.spawn(run.resume_owing(spooled.body));
        }
        self.recover_folders(&mut taken).await;
        let lost: Vec<(RunId, Known)> = self
            .memory
            .held()
            .filter(|(run, known)| !taken.contains(&((*run).clone(), known.attempt)))
            .map(|(run, known)| (run.clone(), *known))
            .collect();
        for (run, known) in lost {
            let note = self.note(&run, known.attempt, Some(known));
            let (task, words) = self.task(note);
            self.runs.insert(RunAttempt { run, attempt: known.attempt }, words);
            self.tasks.spawn(task.interrupted());
        }
    }

    async fn recover_folders(&mut self, taken: &mut HashSet<(RunId, u32)>) {
        let Ok(entries) = std::fs::read_dir(&self.shared.runs_dir) else { return };
        let boot = heartbeat::boot_id();
        for dir in entries.flatten().map(|e| e.path()) {
            let note = files::read_note(&dir);
            let known = note.as_ref().and_then(|n| self.memory.get(&n.run));
            let released = files::is_released(&dir);
            let claim = note.as_ref().map_or(Claim::None, |note| claim(note.attempt, known, released));
            match note.filter(|_| claim != Claim::None) {
                Some(note) => {
                    taken.insert((note.run.clone(), note.attempt));
                    if claim == Claim::OfLostJournal {
                        self.mark_again(&note).await;
                    }
                    // What the last process wrote before it died is there, unless the host died too.
                    if note.boot == boot && !released {
                        self.return_unstarted(note);
                    } else {
                        self.adopt(&dir, note);
                    }
                }
                None if taken.iter().any(|(r, a)| dir.ends_with(format!("{r}.{a}"))) => {}
                None => files::remove_dir(&dir),
            }
        }
    }

    /// Marks an attempt of which only its folder knows as started, in the journal that has taken the place of the one
    /// that knew it.
    async fn mark_again(&mut self, note: &Note) {
        tracing::warn!(run = %note.run, "the journal does not know a run that its folder says was started");
        let known = Known::new(note.attempt, Phase::Started, note.expires_ms);
        let known = Known { order_digest: Some(note.order_digest), ..known };
        self.memory.note(note.run.clone(), known);
        let (run, digest) = (&note.run, note.order_digest);
        let mark = self.shared.journal().started(run, note.attempt, note.expires_ms, digest);
        if let Err(error) = mark.wait().await {
            // Its folder says it again at the next start.
            tracing::error!(run = %note.run, %error, "cannot mark it again");
            self.shared.count_loss("journal-write");
        }
    }

    fn return_unstarted(&mut self, note: Note) {
        let (key, attempt) = (note.run.clone(), note.attempt);
        let (run, words) = self.task(note);
        self.runs.insert(RunAttempt { run: key, attempt }, words);
        self.tasks.spawn(run.never_released());
    }

    fn adopt(&mut self, dir: &Path, note: Note) {
        tracing::info!(run = %note.run, "taking over a run");
        let key = note.run.clone();
        let attempt = note.attempt;
        let folder = RunFolder::open(dir).ok();
        // A run whose keeper has ended holds no slot, and another may have got it since.
        let ended = folder.as_ref().is_none_or(|f| !matches!(f.exit_record(), Ok(None)));
        let slot = note.slot.filter(|slot| !ended && self.free.contains(slot)).unwrap_or(NO_SLOT);
        self.free.retain(|free| *free != slot);
        let (run, words) = self.task(note);
        self.runs.insert(RunAttempt { run: key, attempt }, words);
        match folder {
            Some(folder) => self.tasks.spawn(run.adopt(folder, slot)),
            None => self.tasks.spawn(run.interrupted()),
        };
    }

    fn note(&self, run: &RunId, attempt: u32, known: Option<Known>) -> Note {
        let expires_ms = known.map_or_else(now_ms, |k| k.expires_ms);
        let order_digest = known.and_then(|k| k.order_digest).unwrap_or_else(|| Digest::of(b""));
        Note::of(run.clone(), attempt, expires_ms, order_digest)
    }

    pub(super) fn task(&self, note: Note) -> (Run, mpsc::Sender<Word>) {
        let (sender, words) = mpsc::channel(WORDS);
        let run =
            Run::new(self.shared.clone(), note, words, self.milestones.clone(), self.connected.subscribe());
        (run, sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_up_if_its_program_may_have_run_and_is_not_settled() {
        let known = |attempt, phase| Some(Known::new(attempt, phase, 0));
        for (known, released, expected) in [
            (known(2, Phase::Started), true, Claim::OfJournal),
            (known(2, Phase::Started), false, Claim::OfJournal),
            (known(2, Phase::Finished), true, Claim::None),
            (known(2, Phase::Receipted), true, Claim::None),
            (known(2, Phase::Closed), true, Claim::None),
            (known(3, Phase::Started), true, Claim::None),
            // The journal is lost, or an older copy.
            (None, true, Claim::OfLostJournal),
            (known(1, Phase::Receipted), true, Claim::OfLostJournal),
            (known(1, Phase::Started), true, Claim::OfLostJournal),
            // Nothing was let go: its process died before the mark, or just after.
            (None, false, Claim::None),
            (known(1, Phase::Receipted), false, Claim::None),
        ] {
            assert_eq!(claim(2, known, released), expected, "{known:?} {released}");
        }
    }
}

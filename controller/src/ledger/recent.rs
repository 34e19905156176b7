//! Rows of open runs that the writer has written or loaded: the next word on them needs no query.
//!
//! Only the writer writes, so what it committed is what the file holds. It is a saving and nothing else: a row that
//! is not here is loaded, and after a failed commit nothing is here.

use std::collections::HashMap;

use sally_common::id::{JobId, RunId};

use super::command::Command;
use super::types::{Job, Run};
use super::work::{Row, Work};

/// Runs that are kept at most. When there are more, all are let go.
const KEPT: usize = 8192;

/// The rows.
#[derive(Default)]
pub(super) struct Recent {
    jobs: HashMap<JobId, Job>,
    runs: HashMap<RunId, Run>,
}

impl Recent {
    /// Gives a batch the rows that its commands name.
    pub(super) fn lend(&self, work: &mut Work<'_>, commands: &[&Command]) {
        for id in commands.iter().flat_map(|c| c.runs()) {
            if let (Some(run), Some(job)) = (self.runs.get(id), self.jobs.get(id.job())) {
                work.runs.entry(id.clone()).or_insert_with(|| Row::loaded(run.clone()));
                work.jobs.entry(id.job().clone()).or_insert_with(|| Row::loaded(job.clone()));
            }
        }
    }

    /// Takes over what a batch has committed.
    pub(super) fn learn(&mut self, work: Work<'_>) {
        if !work.pruned.is_empty() {
            return self.clear();
        }
        let new = work.new.iter().map(|n| n.targets.len()).sum::<usize>();
        if self.runs.len() + work.runs.len() + new > KEPT {
            self.clear();
        }
        if work.runs.len() + new > KEPT {
            return;
        }
        for run in work.new.iter().flat_map(|new| new.runs()) {
            self.runs.insert(run.id.clone(), run);
        }
        for (id, row) in work.runs {
            // Of what is final only a correction can come, which is rare enough to be loaded.
            if row.value.is_final {
                self.runs.remove(&id);
            } else {
                self.runs.insert(id, row.value);
            }
        }
        for (id, row) in work.jobs {
            if row.value.ended_ms.is_some() {
                self.jobs.remove(&id);
            } else {
                self.jobs.insert(id, row.value);
            }
        }
    }

    /// Lets everything go.
    pub(super) fn clear(&mut self) {
        self.jobs.clear();
        self.runs.clear();
    }
}

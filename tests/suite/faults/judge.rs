//! The judgement: the world, what callers are told, and the ledger, compared run by run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sally::ledger::Ledger;
use sally_common::id::JobId;
use serde_json::Value;

use crate::effects::{Effects, Job, show};

/// A submission that was answered with a job.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub job: Job,
    pub id: String,
    /// How many runs it must have.
    pub targets: usize,
    /// What it was submitted with explains these ends.
    pub may_be: Vec<&'static str>,
    /// How many attempts each run may have.
    pub tries: usize,
    /// It was cancelled before it was submitted.
    pub cancelled_ahead: bool,
    /// What of it a lost ledger may have taken with it.
    pub lost: Lost,
}

/// What nobody can know any more of a job that ended before a ledger was lost, or restored from a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    Nothing,
    /// How it ended is known, its result and its output are not.
    Result,
    /// Everything: no agent holds it, and no ledger has it.
    All,
}

/// The promises that every row is tried against, in the order of the table.
pub const PROMISES: [&str; 5] = ["kept", "at most once", "one end", "whole", "back"];

/// How often each promise was tried and held, and what became of the runs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// By promise: held, tried.
    pub promises: [(u64, u64); 5],
    /// Runs by their last state.
    pub outcomes: BTreeMap<String, u64>,
    /// How often a fault struck.
    pub struck: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        for (sum, more) in self.promises.iter_mut().zip(other.promises) {
            sum.0 += more.0;
            sum.1 += more.1;
        }
        for (state, count) in &other.outcomes {
            *self.outcomes.entry(state.clone()).or_default() += count;
        }
        self.struck += other.struck;
    }

    pub fn note(&mut self, promise: usize, held: bool) {
        self.promises[promise].0 += u64::from(held);
        self.promises[promise].1 += 1;
    }
}

/// States other than `succeeded` that a fault explains, and how many runs of each.
pub type Excuses = BTreeMap<&'static str, u64>;

pub struct Judge<'a> {
    pub effects: &'a Effects,
    pub excuses: &'a Excuses,
    pub tally: Tally,
    pub problems: Vec<String>,
    known: BTreeSet<String>,
    /// Runs whose end only a fault explains, by state.
    excused: BTreeMap<String, u64>,
}

impl<'a> Judge<'a> {
    pub fn new(effects: &'a Effects, excuses: &'a Excuses) -> Judge<'a> {
        let (tally, problems, known) = (Tally::default(), Vec::new(), BTreeSet::new());
        Judge { effects, excuses, tally, problems, known, excused: BTreeMap::new() }
    }

    /// A submission that was accepted, and what the controller says of it now.
    pub fn job(&mut self, accepted: &Accepted, record: Option<&Value>) {
        let none = Vec::new();
        if accepted.lost == Lost::All && record.is_none() {
            return self.forgotten(accepted);
        }
        let runs = record.and_then(|r| r["runs"].as_array()).unwrap_or(&none);
        let kept = runs.len() == accepted.targets;
        if !kept {
            self.problems.push(format!(
                "job {} has {} runs, not {}",
                accepted.id,
                runs.len(),
                accepted.targets
            ));
        }
        self.tally.note(0, kept);
        for run in runs {
            self.run(accepted, run);
        }
    }

    /// No record is left: what happened in the world is.
    fn forgotten(&mut self, accepted: &Accepted) {
        for n in 0..accepted.targets {
            let id = format!("{}-{n}", accepted.id);
            let (starts, ends) = (self.effects.starts(&id), self.effects.ends(&id));
            let once = starts <= 1 && ends <= 1;
            if !once {
                self.problems.push(format!("done twice: starts {starts}, ends {ends}, {id}, forgotten"));
            }
            self.tally.note(1, once);
            *self.tally.outcomes.entry("forgotten".into()).or_default() += 1;
            self.known.insert(id);
        }
    }

    fn run(&mut self, accepted: &Accepted, run: &Value) {
        let id = run["run"].as_str().unwrap().to_owned();
        let state = run["state"].as_str().unwrap().to_owned();
        let attempts = self.effects.attempts(&id);
        let (starts, ends) = attempts.values().fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1));
        let last = run["attempt"].as_u64().and_then(|n| attempts.get(&n)).copied().unwrap_or_default();
        let before = self.problems.len();
        let mut problem =
            |what: &str| self.problems.push(format!("{what}: starts {starts}, ends {ends}, {}", show(run)));
        let once = starts <= accepted.tries && attempts.values().all(|n| n.0 <= 1 && n.1 <= 1);
        if !once {
            problem("done twice");
        }
        let mut honest = true;
        // A guess of the controller's that the agent may still correct; only where a journal was lost.
        if run["final"] != true && state != "unknown" {
            (honest, _) = (false, problem("not settled in time"));
        }
        if starts > 0 && matches!(state.as_str(), "expired" | "rejected") {
            (honest, _) = (false, problem("it ran, and is denied"));
        }
        // What waits for another attempt is cancelled without one under way.
        if state == "cancelled" && accepted.tries == 1 {
            // TERM may come when it has just done everything, by itself: then the record has its exit code and its result, and
            // denies nothing. Where a row knows when it cancels, there is no such chance.
            let by_chance = accepted.may_be.contains(&"cancelled") && run["exit_code"] == 0;
            if ends > 0 && run["signal"].is_null() && !by_chance {
                (honest, _) = (false, problem("it ran to its end, and is denied"));
            }
            if starts > 0 && run["started_at"].is_null() {
                (honest, _) = (false, problem("it ran, and is denied"));
            }
        }
        if accepted.cancelled_ahead && (starts > 0 || state != "cancelled") {
            (honest, _) = (false, problem("it was cancelled before it was submitted"));
        }
        let mut whole = true;
        if state == "succeeded" {
            if last != (1, 1) {
                (honest, _) = (false, problem("succeeded, and not done once"));
            }
            let lost = accepted.lost == Lost::Result && run["reason"] == "result-lost";
            if lost {
                // It says so, and nothing is made up: output that was streamed is in a folder of its own.
                let said = [String::new(), accepted.job.stdout(&id)];
                if !run["result"].is_null() || !said.iter().any(|said| run["stdout"] == *said) {
                    (whole, _) = (false, problem("result or output is made up"));
                }
            } else if run["result"] != accepted.job.result() || run["stdout"] != accepted.job.stdout(&id) {
                (whole, _) = (false, problem("result or output is not what the script said"));
            }
            if !lost {
                self.tally.note(3, whole);
            }
        } else if !accepted.may_be.contains(&state.as_str()) {
            if !self.excuses.contains_key(state.as_str()) {
                (honest, _) = (false, problem("no fault explains this state"));
            }
            *self.excused.entry(state.clone()).or_default() += 1;
        }
        self.tally.note(1, once);
        self.tally.note(2, honest);
        debug_assert_eq!(self.problems.len() > before, !(once && honest && whole));
        if state != "succeeded" {
            // Read when the test fails.
            println!("{id} is {state}, attempt {}: {} ({})", run["attempt"], run["message"], run["reason"]);
        }
        *self.tally.outcomes.entry(state).or_default() += 1;
        self.known.insert(id);
    }

    /// Faults explain so many runs and not more; nothing ran that nobody submitted.
    pub fn whole_world(&mut self) {
        for (state, most) in self.excuses {
            let count = self.excused.get(*state).copied().unwrap_or(0);
            if count > *most {
                self.problems.push(format!("{count} runs are {state}, and the faults explain {most}"));
            }
        }
        for stranger in self.effects.runs().difference(&self.known) {
            self.problems.push(format!("{stranger} ran and belongs to no job that was accepted"));
        }
    }

    /// The ledger itself, once its controller has ended: the same jobs, the same states, none besides.
    pub fn ledger(&mut self, path: &Path, accepted: &[Accepted], told: &BTreeMap<String, String>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found: BTreeMap<String, BTreeMap<String, String>> = runtime.block_on(async {
            let ledger = Ledger::open(path).await.unwrap();
            let mut found = BTreeMap::new();
            let mut before: Option<JobId> = None;
            loop {
                let page = ledger.jobs(before.as_ref(), 100).await.unwrap();
                let Some(last) = page.last() else { break };
                before = Some(last.id.clone());
                for job in page {
                    let runs = ledger.runs(&job.id, 0, 500, &[]).await.unwrap();
                    let states = runs.into_iter().map(|run| (run.id.to_string(), run.state.to_string()));
                    found.insert(job.id.to_string(), states.collect());
                }
            }
            ledger.close().await;
            found
        });
        let wanted: BTreeSet<&str> = accepted.iter().map(|a| a.id.as_str()).collect();
        let may_be_gone = |id: &str| accepted.iter().any(|a| a.id == id && a.lost == Lost::All);
        for stranger in found.keys().filter(|id| !wanted.contains(id.as_str())) {
            self.problems.push(format!("job {stranger} is in the ledger and was never accepted"));
        }
        for id in wanted.iter().filter(|id| !found.contains_key(**id) && !may_be_gone(id)) {
            self.problems.push(format!("job {id} was accepted and is not in the ledger"));
        }
        for (run, state) in found.values().flatten() {
            if told.get(run).is_some_and(|said| said != state) {
                self.problems.push(format!("{run} is {state} in the ledger and {} to its caller", told[run]));
            }
        }
    }
}

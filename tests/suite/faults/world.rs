//! One `up` with its world: jobs to be done, faults to be suffered, a judge at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::judge::{Accepted, Excuses, Judge, Lost, Tally};
use super::points::Points;
use crate::effects::{Effects, Job, Kind, Random, lives, nothing_lives, processes, send};
use crate::harness::{LIMIT, Said, Up, eventually, nats_server, programs, run};

/// How long everything may take to be settled after the last fault.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

pub struct World {
    pub up: Up,
    pub points: Points,
    pub effects: Effects,
    pub agents: u64,
    token: String,
    pub(super) accepted: Vec<Accepted>,
    excuses: Excuses,
    struck: u64,
    pub(super) numbers: u64,
    /// Numbers of jobs that were cancelled before they were submitted.
    pub(super) cancelled_ahead: BTreeSet<u64>,
    /// Numbers of jobs of which the latest alone counts, by agent.
    pub(super) latest_only: BTreeMap<u64, Vec<u64>>,
    /// Which jobs go where; the same for the same seed.
    pub random: Random,
}

/// What kind of process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    Agent,
    Launcher,
    Keeper,
    Controller,
    Broker,
}

impl Process {
    pub const ALL: [Process; 5] =
        [Process::Agent, Process::Launcher, Process::Keeper, Process::Controller, Process::Broker];
}

impl World {
    pub fn new(agents: u64, seed: u64) -> World {
        let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
        World::in_folder(dir, agents, seed)
    }

    /// In a folder that may be prepared: a file system of its own for some part.
    pub fn in_folder(dir: tempfile::TempDir, agents: u64, seed: u64) -> World {
        World::of_program(&programs().join("sally"), dir, agents, seed, &[])
    }

    /// How many jobs there are so far.
    pub fn jobs(&self) -> u64 {
        self.numbers
    }

    /// The same of another `sally`, with more arguments.
    pub fn of_program(
        program: &Path,
        dir: tempfile::TempDir,
        agents: u64,
        seed: u64,
        more: &[&str],
    ) -> World {
        // Part of every path, so of the environment or the arguments of every process that `up` starts.
        let token = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let points = Points { dir: dir.path().join("fail") };
        fs::create_dir_all(&points.dir).unwrap();
        let server = always_synced(dir.path());
        let up = Up::start_program(program, dir, u32::try_from(agents).unwrap(), more, |command| {
            command.env("SALLY_FAIL", &points.dir);
            if let Some(server) = server {
                command.env("SALLY_NATS_SERVER", server);
            }
        });
        World {
            up,
            points,
            effects: Effects::listen(),
            agents,
            token,
            accepted: Vec::new(),
            excuses: Excuses::new(),
            struck: 0,
            numbers: 0,
            cancelled_ahead: BTreeSet::new(),
            latest_only: BTreeMap::new(),
            random: Random::new(seed),
        }
    }

    /// A fault has struck.
    pub fn struck(&mut self) {
        self.struck += 1;
    }

    /// The faults so far explain this many more runs in this state.
    pub fn excuse(&mut self, state: &'static str, runs: u64) {
        *self.excuses.entry(state).or_default() += runs;
    }

    // ---- jobs

    /// `sally`. Callers are on the controller's host, so they have its clock.
    fn command(&self) -> std::process::Command {
        let mut command = self.up.command();
        command.env("SALLY_FAIL", &self.points.dir);
        command
    }

    /// Runs `sally`.
    pub fn sally(&self, args: &[&str]) -> Said {
        run(self.command().args(args))
    }

    /// Submits a job to an agent by its number, from 1. Says the same until there is an answer.
    pub fn submit(&mut self, kind: Kind, agent: u64) -> String {
        self.submit_to(kind, &format!("local-{agent}"), 1)
    }

    /// The same with any target, and how many runs it must make.
    pub fn submit_to(&mut self, kind: Kind, target: &str, targets: usize) -> String {
        self.submit_with(kind, target, targets, &[])
    }

    /// The same with more options.
    pub fn submit_with(&mut self, kind: Kind, target: &str, targets: usize, more: &[&str]) -> String {
        let id = eventually("a submission is answered", || self.try_submit(kind, target, more));
        self.numbers += 1;
        let job = Job { number: self.numbers, kind };
        let cancelled_ahead = self.cancelled_ahead.contains(&self.numbers);
        let may_be = if cancelled_ahead { vec!["cancelled"] } else { Vec::new() };
        self.accepted.push(Accepted {
            job,
            id: id.clone(),
            targets,
            may_be,
            tries: 1,
            cancelled_ahead,
            lost: Lost::Nothing,
        });
        id
    }

    fn try_submit(&self, kind: Kind, target: &str, more: &[&str]) -> Option<String> {
        let job = Job { number: self.numbers + 1, kind };
        let mut command = self.submission(&job, target, more);
        let said = run(&mut command);
        match said.code {
            0 => Some(said.text().trim().to_owned()),
            // Out of reach, or a disk that is full: said again, under the same request id.
            7 | 1 => None,
            code => panic!("exit {code} is no way to refuse a submission: {}{}", said.text(), said.stderr),
        }
    }

    /// Submits in a process of its own, for a fault that strikes meanwhile: it is asked until there is an answer.
    pub fn submit_meanwhile(
        &mut self,
        kind: Kind,
        target: &str,
        targets: usize,
        meanwhile: impl FnOnce(&mut World),
    ) -> String {
        let job = Job { number: self.numbers + 1, kind };
        let mut command = self.submission(&job, target, &[]);
        let asking = std::thread::spawn(move || run(&mut command));
        meanwhile(self);
        let first = asking.join().unwrap();
        let again = self.submit_to(kind, target, targets);
        if first.code == 0 {
            assert_eq!(first.text().trim(), again, "one request, two jobs");
        }
        again
    }

    fn submission(&self, job: &Job, target: &str, more: &[&str]) -> std::process::Command {
        let (token, port) =
            (format!("KILLS_TOKEN={}", self.token), format!("KILLS_PORT={}", self.effects.port));
        let request = format!("fault-{}", job.number);
        let mut command = self.command();
        command.args(["exec", "-a", target, "--profile", "net", "--detach", "--request-id", &request]);
        command.args(["--env", &token, "--env", &port]).args(more);
        command.args(["--", "bash", "-c", &job.script()]);
        command
    }

    /// Submits some jobs of mixed kinds to agents by turns.
    pub fn some_jobs(&mut self, count: u64) {
        for n in 0..count {
            let kind = [Kind::Instant, Kind::Short, Kind::Large][self.random.below(3) as usize];
            self.submit(kind, 1 + n % self.agents);
        }
    }

    /// Waits until the script of the newest job has said that it started.
    pub fn wait_for_start(&self) {
        self.effects.wait_for_start(self.numbers);
    }

    pub fn show(&self, id: &str) -> Option<Value> {
        let said = self.sally(&["job", "show", id, "-o", "json"]);
        (said.code == 0).then(|| said.json())
    }

    /// Waits until every run of every job so far is settled. Returns the newest job.
    pub fn wait_for_end(&self) -> Value {
        let until = Instant::now() + LIMIT;
        let mut last = Value::Null;
        for accepted in &self.accepted {
            let record = self.settled(&accepted.id, until);
            last = record
                .clone()
                .filter(all_settled)
                .unwrap_or_else(|| panic!("not within {LIMIT:?}: job {} ends: {record:?}", accepted.id));
        }
        last
    }

    /// Waits until every run of every job so far is settled.
    pub fn wait_for_all_ends(&self) {
        let until = Instant::now() + LIMIT;
        for Accepted { id, .. } in &self.accepted {
            let record = self.settled(id, until);
            assert!(record.as_ref().is_some_and(all_settled), "not within {LIMIT:?}: job {id}: {record:?}");
        }
    }

    // ---- faults

    /// Living processes of a kind.
    pub fn pids(&self, process: Process) -> Vec<i32> {
        self.victims()(process)
    }

    /// Every process of an agent, but not those of its scripts.
    pub fn pids_on_agents_host(&self) -> Vec<i32> {
        let all = processes(&self.token).into_iter();
        all.filter(|(_, name)| name.starts_with("sally-")).map(|(pid, _)| pid).collect()
    }

    /// The same for another thread.
    pub fn victims(&self) -> impl FnMut(Process) -> Vec<i32> + Send + 'static {
        let (dir, token, agents) = (self.up.dir().join("run"), self.token.clone(), self.agents);
        move |process| {
            let each = |suffix: &str| (1..=agents).map(|n| format!("local-{n}{suffix}")).collect();
            let names: Vec<String> = match process {
                Process::Agent => each(""),
                Process::Launcher => each(".launcher"),
                Process::Controller => vec!["serve".into()],
                Process::Broker => vec!["nats-server".into()],
                Process::Keeper => {
                    let all = processes(&token).into_iter();
                    return all.filter(|(_, name)| name == "sally-keeper").map(|(pid, _)| pid).collect();
                }
            };
            let pid = |name: &String| -> Option<i32> {
                let text = fs::read_to_string(dir.join(format!("{name}.pid"))).ok()?;
                text.split(|c: char| !c.is_ascii_digit()).find(|s| !s.is_empty())?.parse().ok()
            };
            names.iter().filter_map(pid).filter(|p| lives(*p)).collect()
        }
    }

    /// Kills one process of a kind, chosen by a number, and waits for its death. Waits for there being one.
    pub fn kill_one(&mut self, process: Process, choice: u64) -> i32 {
        let killed = eventually(&format!("a living {process:?}"), || {
            let all = self.pids(process);
            let pid = *all.get((choice % all.len().max(1) as u64) as usize)?;
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok().map(|()| pid)
        });
        eventually("a killed process is dead", || (!lives(killed)).then_some(()));
        self.struck();
        killed
    }

    /// Kills a supervised process and waits for the next one.
    pub fn kill_and_wait(&mut self, name: &str) {
        let pid = eventually(&format!("a living {name}"), || self.up.pid_of(name).filter(|p| lives(*p)));
        send(pid, Signal::SIGKILL);
        eventually(&format!("another {name}"), || {
            self.up.pid_of(name).filter(|now| *now != pid && lives(*now))
        });
        self.struck();
    }

    /// Stops a process for a while, as a frozen host does.
    pub fn freeze(&mut self, pid: i32, pause: Duration) {
        if kill(Pid::from_raw(pid), Signal::SIGSTOP).is_ok() {
            std::thread::sleep(pause);
            // It may have been killed meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
        self.struck();
    }

    /// Where the broker keeps its streams.
    pub fn store(&self) -> PathBuf {
        self.up.dir().join("jetstream")
    }

    /// Copies the broker's storage as it is at this moment.
    pub fn copy_of_store(&self, name: &str) -> PathBuf {
        let to = self.up.scratch().join(name);
        copy_folder(&self.store(), &to);
        to
    }

    /// Kills the broker and lets the next one find another storage, or none.
    pub fn replace_store(&mut self, with: Option<&Path>) {
        let pid = eventually("a broker", || self.up.pid_of("nats-server").filter(|p| lives(*p)));
        send(pid, Signal::SIGSTOP);
        let store = self.store();
        empty_folder(&store);
        if let Some(copy) = with {
            copy_folder(copy, &store);
        }
        self.kill_and_wait("nats-server");
    }

    /// An agent's own folder.
    pub fn agent_dir(&self, agent: u64) -> PathBuf {
        self.up.dir().join(format!("agents/local-{agent}"))
    }

    /// Waits until the controller knows that the agent's journal is another one than this.
    pub fn wait_for_other_incarnation(&self, before: &Value) {
        eventually("the agent has another incarnation", || {
            let now = self.agent(1)?;
            (now["incarnation"] != before["incarnation"]).then_some(())
        });
    }

    /// What an agent said last about itself.
    pub fn agent(&self, agent: u64) -> Option<Value> {
        let said = self.sally(&["agent", "ls", "-o", "json"]);
        let all = (said.code == 0).then(|| said.json())?;
        let name = format!("local-{agent}");
        all["agents"].as_array()?.iter().find(|a| a["agent"] == name.as_str()).cloned()
    }

    // ---- the end

    /// Waits until everything is settled, asks each agent for one more job, judges, and ends everything.
    pub fn judge(mut self) -> (Tally, Vec<String>) {
        self.points.clear();
        let mut records = BTreeMap::new();
        let until = Instant::now() + SETTLE_LIMIT;
        for accepted in &self.accepted {
            // Nobody waits for what is gone; it is gone when a controller says so.
            let until = if accepted.lost == Lost::All { Instant::now() } else { until };
            records.insert(accepted.id.clone(), self.settled(&accepted.id, until));
        }
        let probes = self.probe(&mut records);
        let mut judge = Judge::new(&self.effects, &self.excuses);
        judge.tally.struck = self.struck;
        for accepted in &self.accepted {
            judge.job(accepted, records[&accepted.id].as_ref());
        }
        for (agent, is_back) in probes {
            judge.tally.note(4, is_back);
            if !is_back {
                judge.problems.push(format!("local-{agent} does no work any more"));
            }
        }
        judge.whole_world();
        let told = told(&records);
        // What the next process says first is what its journal holds.
        for agent in 1..=self.agents {
            let pid = self.up.pid_of(&format!("local-{agent}")).filter(|pid| lives(*pid));
            let _ = pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
        }
        judge.problems.extend(leftovers(&self));
        let ledger = self.up.dir().join("controller/ledger.db");
        let dir = self.up.stop();
        nothing_lives(&self.token);
        judge.ledger(&ledger, &self.accepted, &told);
        let (tally, problems) = (judge.tally, judge.problems);
        if !problems.is_empty() {
            // For whoever looks into it.
            println!("kept: {}", dir.keep().display());
        }
        (tally, problems)
    }

    /// One more job for each agent.
    fn probe(&mut self, records: &mut BTreeMap<String, Option<Value>>) -> Vec<(u64, bool)> {
        let ids: Vec<(u64, String)> = (1..=self.agents).map(|n| (n, self.submit(Kind::Instant, n))).collect();
        let until = Instant::now() + LIMIT;
        let mut back = Vec::new();
        for (agent, id) in ids {
            let record = self.settled(&id, until);
            back.push((agent, record.as_ref().is_some_and(|r| r["runs"][0]["state"] == "succeeded")));
            records.insert(id, record);
        }
        back
    }

    /// A job once all its runs are final, or as it is when time is up.
    fn settled(&self, id: &str, until: Instant) -> Option<Value> {
        loop {
            let record = self.show(id);
            if record.as_ref().is_some_and(all_settled) || Instant::now() > until {
                return record;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Final, or the one state that stays open on purpose.
fn all_settled(record: &Value) -> bool {
    let settled = |run: &Value| run["final"] == true || run["state"] == "unknown";
    record["runs"].as_array().is_some_and(|runs| runs.iter().all(settled))
}

/// What callers were told last, by run.
fn told(records: &BTreeMap<String, Option<Value>>) -> BTreeMap<String, String> {
    let runs = records.values().flatten().filter_map(|r| r["runs"].as_array()).flatten();
    runs.filter(|r| r["final"] == true)
        .map(|r| (r["run"].as_str().unwrap().to_owned(), r["state"].as_str().unwrap().to_owned()))
        .collect()
}

/// What should be gone once everything is settled and is not.
fn leftovers(world: &World) -> Vec<String> {
    let (up, token) = (&world.up, format!("KILLS_TOKEN={}", world.token));
    let until = Instant::now() + LIMIT;
    loop {
        let mut left = Vec::new();
        let alive = processes(&token);
        if !alive.is_empty() {
            left.push(format!("processes of runs that are settled: {alive:?}"));
        }
        for agent in fs::read_dir(up.dir().join("agents")).into_iter().flatten().flatten() {
            let runs = fs::read_dir(agent.path().join("state/runs")).into_iter().flatten().flatten();
            left.extend(runs.map(|entry| format!("run folder {}", entry.path().display())));
        }
        let said = world.sally(&["agent", "ls", "-o", "json"]);
        match (said.code == 0).then(|| said.json()) {
            None => left.push("the controller does not answer".into()),
            Some(all) => {
                for agent in all["agents"].as_array().into_iter().flatten() {
                    if agent["spool_results"] != 0 || agent["slots_used"] != 0 {
                        left.push(format!("{} says that it holds something: {agent}", agent["agent"]));
                    }
                }
            }
        }
        if left.is_empty() || Instant::now() > until {
            return left;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// With `SALLY_TEST_SYNC=always` the broker syncs every message: a program in its place that says so to the real one.
fn always_synced(dir: &Path) -> Option<PathBuf> {
    if std::env::var("SALLY_TEST_SYNC").is_ok_and(|v| v == "always") {
        return Some(synced_server(dir));
    }
    None
}

fn synced_server(dir: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let real = nats_server();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -c ] || exec '{0}' \"$@\"\n\
         sed 's/^jetstream {{/&\\n  sync_interval: always/' \"$2\" > \"$2.synced\" && exec '{0}' -c \"$2.synced\"\n",
        real.display()
    );
    let path = dir.join("nats-server-synced");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

pub fn empty_folder(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        gone.unwrap();
    }
}

/// Copies what is there; what goes away meanwhile is left out.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => copy_folder(&path, &to),
            Ok(kind) if kind.is_file() => drop(fs::copy(&path, &to)),
            _ => {}
        }
    }
}

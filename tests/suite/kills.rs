//! Every process killed at random moments under a stream of jobs, and what the world saw of it.
//!
//! The judge stands outside Sally: scripts tell a listener of the test when they start and when they end, and
//! wait until it has heard them. What Sally says afterwards is compared with that.
//!
//! Choices come from a seed, which is printed; `SALLY_SEED=N` makes the same choices again (not the same
//! moments: machines differ).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::effects::{
    Effects, Job, Kind, Random, lives, mentions, nothing_lives, processes, seed, send, show,
};
use crate::harness::{LIMIT, Said, Up, eventually, run};

/// Kills of each kind of process.
const KILLS: usize = 20;
const AGENTS: u64 = 3;
/// Callers at the same time.
const CALLERS: u64 = 4;
/// Between two submissions of one caller, in milliseconds.
const SUBMIT_GAP_MS: (u64, u64) = (200, 900);
/// From the moment when there is a victim to its death, in milliseconds.
const KILL_GAP_MS: (u64, u64) = (0, 1_500);
/// How long results may take after the last kill.
const SETTLE_LIMIT: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Agent,
    Launcher,
    Keeper,
    Controller,
    Broker,
}

impl Victim {
    const ALL: [Victim; 5] =
        [Victim::Agent, Victim::Launcher, Victim::Keeper, Victim::Controller, Victim::Broker];
}

#[test]
fn agents_killed_under_a_stream_of_jobs() {
    stream(&[Victim::Agent], KILLS);
}

#[test]
fn launchers_killed_under_a_stream_of_jobs() {
    stream(&[Victim::Launcher], KILLS);
}

#[test]
fn keepers_killed_under_a_stream_of_jobs() {
    stream(&[Victim::Keeper], KILLS);
}

#[test]
fn controllers_killed_under_a_stream_of_jobs() {
    stream(&[Victim::Controller], KILLS);
}

#[test]
fn brokers_killed_under_a_stream_of_jobs() {
    stream(&[Victim::Broker], KILLS);
}

#[test]
fn everything_killed_under_a_stream_of_jobs() {
    stream(&Victim::ALL, 2 * KILLS);
}

#[test]
fn a_long_run_survives_two_deaths_of_its_agent() {
    long_run(|world| {
        world.kill_and_wait("local-1");
        std::thread::sleep(Duration::from_secs(2));
        world.kill_and_wait("local-1");
    });
}

#[test]
fn a_long_run_survives_two_deaths_of_the_controller() {
    long_run(|world| {
        world.kill_and_wait("serve");
        std::thread::sleep(Duration::from_secs(2));
        world.kill_and_wait("serve");
    });
}

#[test]
fn a_long_run_survives_the_death_of_the_broker() {
    long_run(|world| world.kill_and_wait("nats-server"));
}

#[test]
fn a_long_run_survives_the_loss_of_everything_the_broker_stored() {
    long_run(|world| {
        // The supervisor starts another at once, so the store goes while the killed one is being replaced: the
        // new server finds it gone, or loses it under its feet and is killed in its turn.
        let store = world.up.dir().join("jetstream");
        assert!(store.is_dir(), "{} is not where the broker stores", store.display());
        let pid = world.up.pid_of("nats-server").unwrap();
        send(pid, Signal::SIGSTOP);
        std::fs::remove_dir_all(&store).unwrap();
        world.kill_and_wait("nats-server");
    });
}

#[test]
fn up_killed_leaves_nothing_and_the_next_one_goes_on() {
    let world = World::new(2);
    let done = world.exec_json("local-1", &Job { number: 1, kind: Kind::Instant }, &[], 0);
    let done = done["job"]["id"].as_str().unwrap().to_owned();
    let job = Job { number: 2, kind: Kind::Long };
    let id = world.submit(&job, "local-2", "held");
    world.effects.wait_for_start(2);
    send(world.up.pid(), Signal::SIGKILL);
    let World { up, token, effects, .. } = world;
    let dir = up.killed();
    nothing_lives(&token);
    let up = Up::start_in(dir, 2, &[]);
    let world = World { up, token, effects, seed: 0 };
    let before = world.up.json(&["job", "show", &done], 0);
    assert_eq!(before["runs"][0]["state"], "succeeded");
    // Its host, so to say, went down under it.
    let run = eventually("the held run is settled", || world.final_run(&id));
    assert_eq!(run["state"], "interrupted", "{run}");
    let again = world.exec_json("local-2", &Job { number: 3, kind: Kind::Instant }, &[], 0);
    assert_eq!(again["runs"][0]["state"], "succeeded");
    world.end();
}

#[test]
fn a_stop_during_runs_leaves_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let world = World::new(2);
        for (number, agent) in [(1, "local-1"), (2, "local-2"), (3, "local-1")] {
            world.submit(&Job { number, kind: Kind::Long }, agent, &format!("stop-{number}"));
            world.effects.wait_for_start(number);
        }
        // Two of them under keepers whose launcher is dead: there is another by then, or there is none.
        match signal {
            Signal::SIGTERM => world.kill_and_wait("local-1.launcher"),
            _ => send(world.up.pid_of("local-1.launcher").unwrap(), Signal::SIGKILL),
        }
        send(world.up.pid(), signal);
        let World { up, token, .. } = world;
        let dir = up.ended();
        assert_eq!(processes(&token), [], "after the end of `up`");
        drop(dir);
    }
}

/// A script of ten seconds that talks all the time, and something that happens meanwhile.
fn long_run(meanwhile: impl FnOnce(&World)) {
    let world = World::new(1);
    let job = Job { number: 1, kind: Kind::Long };
    let id = world.submit(&job, "local-1", "long");
    world.effects.wait_for_start(1);
    std::thread::sleep(Duration::from_millis(1_500));
    meanwhile(&world);
    let run = eventually("the long run is settled", || world.final_run(&id));
    let run_id = run["run"].as_str().unwrap().to_owned();
    assert_eq!(run["state"], "succeeded", "{}", show(&run));
    assert_eq!((world.effects.starts(&run_id), world.effects.ends(&run_id)), (1, 1));
    assert_eq!(run["stdout"], job.stdout(&run_id));
    assert_eq!(run["result"], job.result());
    assert_eq!(world.up.sally(&["job", "logs", "--raw", &id]).expect(0).text(), job.stdout(&run_id));
    world.end();
}

/// Jobs without end, kills without mercy, and the judgement.
fn stream(victims: &[Victim], kills: usize) {
    let world = World::new(AGENTS as u32);
    let mut random = Random::new(world.seed);
    let numbers = AtomicU64::new(0);
    let enough = AtomicBool::new(false);
    let mut tally: BTreeMap<Victim, usize> = BTreeMap::new();
    let jobs = std::thread::scope(|scope| {
        // Several callers: one whose question got lost waits ten seconds for the answer.
        let callers: Vec<_> = (0..CALLERS)
            .map(|n| {
                let (world, numbers, enough) = (&world, &numbers, &enough);
                scope.spawn(move || caller(world, numbers, n, enough))
            })
            .collect();
        // A panic here must not leave the other threads running.
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for n in 0..kills {
                let victim = victims[n % victims.len()];
                // Counted in the victim's life: one that is always killed on its first breath shows nothing.
                eventually(&format!("a living {victim:?}"), || {
                    (!world.candidates(victim).is_empty()).then_some(())
                });
                std::thread::sleep(random.between(KILL_GAP_MS));
                world.kill_one(victim, &mut random);
                *tally.entry(victim).or_default() += 1;
            }
        }));
        enough.store(true, Ordering::Relaxed);
        let jobs: Vec<_> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
        killed.unwrap();
        jobs
    });
    let outcomes = world.judge(&jobs, &tally);
    println!("kills {tally:?}, jobs {}, runs {outcomes:?}", jobs.len());
    world.end();
}

/// Submits one job after the other until it is enough.
fn caller(world: &World, numbers: &AtomicU64, own: u64, enough: &AtomicBool) -> Vec<(Job, String)> {
    let mut random = Random::new(world.seed ^ (own + 1));
    let mut jobs = Vec::new();
    while !enough.load(Ordering::Relaxed) {
        let number = numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let job = Job { number, kind: Kind::random(&mut random) };
        let agent = match random.below(8) {
            0 => "local-*".to_owned(),
            _ => format!("local-{}", 1 + random.below(AGENTS)),
        };
        let id = world.submit(&job, &agent, &format!("kills-{number}"));
        jobs.push((job, id));
        std::thread::sleep(random.between(SUBMIT_GAP_MS));
    }
    jobs
}

impl World {
    /// Compares what Sally says with what the listener heard.
    fn judge(&self, jobs: &[(Job, String)], tally: &BTreeMap<Victim, usize>) -> BTreeMap<String, usize> {
        let until = Instant::now() + SETTLE_LIMIT;
        let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
        let mut problems = Vec::new();
        let mut known = BTreeSet::new();
        for (job, id) in jobs {
            for run in self.settled(id, until) {
                let run_id = run["run"].as_str().unwrap().to_owned();
                let state = run["state"].as_str().unwrap().to_owned();
                let (starts, ends) = (self.effects.starts(&run_id), self.effects.ends(&run_id));
                let mut problem = |what: &str| {
                    problems.push(format!("{what}: starts {starts}, ends {ends}, {}", show(&run)))
                };
                if run["final"] != true {
                    problem("not settled in time");
                }
                if starts > 1 || ends > 1 {
                    problem("done twice");
                }
                if ends > 0 && matches!(state.as_str(), "expired" | "rejected" | "cancelled") {
                    problem("done, and denied");
                }
                if state == "succeeded" {
                    if (starts, ends) != (1, 1) {
                        problem("succeeded, and not done once");
                    }
                    if run["result"] != job.result() || run["stdout"] != job.stdout(&run_id) {
                        problem("result or output is not what the script said");
                    }
                } else if state != "interrupted" || !tally.contains_key(&Victim::Keeper) {
                    problem("lost without a reason");
                }
                *outcomes.entry(state).or_default() += 1;
                known.insert(run_id);
            }
        }
        let interrupted = outcomes.get("interrupted").copied().unwrap_or(0);
        if interrupted > tally.get(&Victim::Keeper).copied().unwrap_or(0) {
            problems.push(format!("{interrupted} runs interrupted by fewer kills of keepers"));
        }
        for stranger in self.effects.runs().difference(&known) {
            problems.push(format!("{stranger} ran and belongs to no job that was submitted"));
        }
        assert!(
            problems.is_empty(),
            "seed {}, kills {tally:?}, {outcomes:?}:\n{}",
            self.seed,
            problems.join("\n")
        );
        outcomes
    }

    /// A job's runs once all are final, or as they are when time is up.
    fn settled(&self, id: &str, until: Instant) -> Vec<Value> {
        loop {
            if let Some(record) = self.show(id) {
                let runs = record["runs"].as_array().unwrap().clone();
                if runs.iter().all(|run| run["final"] == true) || Instant::now() > until {
                    return runs;
                }
            }
            assert!(Instant::now() < until + LIMIT, "the controller does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// One `up`, its judge, and the word by which its processes are known.
struct World {
    up: Up,
    effects: Effects,
    token: String,
    seed: u64,
}

impl World {
    fn new(agents: u32) -> World {
        let seed = seed();
        println!("SALLY_SEED={seed}");
        let up = Up::start(agents);
        // Part of every path, so of the environment or the arguments of every process that `up` starts.
        let token = up.dir().parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        World { up, effects: Effects::listen(), token, seed }
    }

    fn args(&self, job: &Job, agent: &str, more: &[&str]) -> Vec<String> {
        let env = format!("KILLS_TOKEN={}", self.token);
        let port = format!("KILLS_PORT={}", self.effects.port);
        let mut args: Vec<String> = ["exec", "-a", agent, "--profile", "net", "--env", &env, "--env", &port]
            .map(str::to_owned)
            .into();
        args.extend(more.iter().map(|m| (*m).to_owned()));
        args.extend(["--".into(), "bash".into(), "-c".into(), job.script()]);
        args
    }

    /// Submits until there is an answer, always under the same request id.
    fn submit(&self, job: &Job, agent: &str, request: &str) -> String {
        let args = self.args(job, agent, &["--detach", "--request-id", request]);
        eventually(&format!("job {} is submitted", job.number), || {
            let said = run(self.up.command().args(&args));
            match said.code {
                0 => Some(said.text().trim().to_owned()),
                7 => None,
                code => {
                    panic!("exit {code} is no way to refuse a submission: {}{}", said.text(), said.stderr)
                }
            }
        })
    }

    fn exec_json(&self, agent: &str, job: &Job, more: &[&str], code: i32) -> Value {
        let mut with = more.to_vec();
        with.extend(["-o", "json"]);
        run(self.up.command().args(self.args(job, agent, &with))).expect(code).json()
    }

    fn show(&self, id: &str) -> Option<Value> {
        let said: Said = self.up.sally(&["job", "show", id, "-o", "json"]);
        (said.code == 0).then(|| said.json())
    }

    /// The only run of a job, once it is final.
    fn final_run(&self, id: &str) -> Option<Value> {
        let run = self.show(id)?["runs"][0].clone();
        (run["final"] == true).then_some(run)
    }

    /// Kills a supervised process and waits for the next one.
    fn kill_and_wait(&self, name: &str) {
        let pid = self.up.pid_of(name).unwrap();
        send(pid, Signal::SIGKILL);
        eventually(&format!("another {name}"), || {
            self.up.pid_of(name).filter(|now| *now != pid && lives(*now))
        });
    }

    /// Kills one process of a kind; waits for there being one.
    fn kill_one(&self, victim: Victim, random: &mut Random) {
        let choice = random.next();
        let killed = eventually(&format!("a living {victim:?}"), || {
            let all = self.candidates(victim);
            let pid = *all.get((choice % all.len().max(1) as u64) as usize)?;
            // A process that ended meanwhile is no kill.
            (self.is_ours(pid) && kill(Pid::from_raw(pid), Signal::SIGKILL) != Err(Errno::ESRCH))
                .then_some(pid)
        });
        eventually("a killed process is dead", || (!lives(killed)).then_some(()));
    }

    fn candidates(&self, victim: Victim) -> Vec<i32> {
        let named = |names: Vec<String>| {
            names.iter().filter_map(|n| self.up.pid_of(n)).filter(|p| lives(*p)).collect()
        };
        let each = |suffix: &str| (1..=AGENTS).map(|n| format!("local-{n}{suffix}")).collect();
        match victim {
            Victim::Agent => named(each("")),
            Victim::Launcher => named(each(".launcher")),
            Victim::Controller => named(vec!["serve".into()]),
            Victim::Broker => named(vec!["nats-server".into()]),
            Victim::Keeper => self
                .processes()
                .into_iter()
                .filter(|(_, name)| name == "sally-keeper")
                .map(|(p, _)| p)
                .collect(),
        }
    }

    fn is_ours(&self, pid: i32) -> bool {
        mentions(pid, &self.token)
    }

    fn processes(&self) -> Vec<(i32, String)> {
        processes(&self.token)
    }

    /// Nothing may be left: of the runs now, of everything after the end.
    fn end(self) {
        let token = format!("KILLS_TOKEN={}", self.token);
        eventually("no process of any run lives", || processes(&token).is_empty().then_some(()));
        let agents = self.up.dir().join("agents");
        eventually("all run folders are gone", || {
            let left: Vec<_> = std::fs::read_dir(&agents)
                .unwrap()
                .flatten()
                .flat_map(|agent| {
                    std::fs::read_dir(agent.path().join("state/runs")).into_iter().flatten().flatten()
                })
                .map(|entry| entry.path())
                .collect();
            left.is_empty().then_some(())
        });
        eventually("all spools are empty", || {
            let said = self.up.sally(&["agent", "ls", "-o", "json"]);
            let all = (said.code == 0).then(|| said.json())?;
            let agents = all["agents"].as_array()?.clone();
            agents.iter().all(|a| a["spool_results"] == 0 && a["slots_used"] == 0).then_some(())
        });
        drop(self.up.stop());
        nothing_lives(&self.token);
    }
}

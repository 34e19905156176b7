//! A random walk: schedules of jobs and faults, each drawn from a seed, each in a world of its own.
//!
//! `SOAK_MINUTES=N` walks for so long and not for the moment that every test run has; `SOAK_SEED=N` is the first seed.
//! `SALLY_SEED=N` carries out the one schedule of that seed: the same jobs and faults in the same order and with
//! the same pauses; what the processes do meanwhile is theirs.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::judge::Tally;
use super::points::{AGENT, CONTROLLER, OTHER, Points};
use super::replay::Replay;
use super::rows::Row;
use super::table;
use super::world::{Process, World};
use crate::effects::{Kind, Random, seed};

/// How long the walk goes on in a test run. A schedule that has begun is carried to its end.
const WALK: Duration = Duration::from_secs(30);
/// Schedules at the same time for each processor: they wait most of the time.
const WORKERS_A_PROCESSOR: usize = 2;
const AGENTS: u64 = 2;
/// Between two steps, in milliseconds.
const GAP_MS: (u64, u64) = (0, 120);
/// Failures after which a walk ends early.
const ENOUGH: usize = 5;

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Whoever comes by a point dies there.
    Abort {
        point: &'static str,
        nth: u64,
    },
    /// Whoever comes by a point stands still until another process has been killed.
    Ambush {
        point: &'static str,
        victim: Process,
    },
    Kill {
        victim: Process,
        choice: u64,
    },
    Freeze {
        victim: Process,
        choice: u64,
        ms: u64,
    },
    StoreErased,
    /// The broker gets back the copy of its storage that was taken at the beginning.
    StoreRolledBack,
    Repeat {
        times: u64,
        seed: u64,
    },
    Clock {
        program: &'static str,
        hours: i64,
    },
    DiskError {
        point: &'static str,
        nth: u64,
    },
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Job(Kind, u64),
    Fault(Fault),
}

/// What is done, and how long to wait before each step, in milliseconds.
pub struct Schedule {
    seed: u64,
    steps: Vec<(u64, Step)>,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SALLY_SEED={}", self.seed)?;
        self.steps.iter().try_for_each(|(pause, step)| writeln!(f, "  +{pause} ms {step:?}"))
    }
}

fn pick<T: Copy>(random: &mut Random, all: &[T]) -> T {
    all[random.below(all.len() as u64) as usize]
}

impl Fault {
    fn draw(random: &mut Random) -> Fault {
        let points = [AGENT, CONTROLLER, OTHER].concat();
        let can_die: Vec<_> = points.iter().copied().filter(|p| !p.ends_with(".commit")).collect();
        match random.below(12) {
            0..=2 => Fault::Abort { point: pick(random, &can_die), nth: 1 + random.below(4) },
            3..=4 => Fault::Ambush { point: pick(random, &can_die), victim: pick(random, &Process::ALL) },
            5..=6 => Fault::Kill { victim: pick(random, &Process::ALL), choice: random.next() },
            7 => {
                let (victim, choice) = (pick(random, &Process::ALL), random.next());
                Fault::Freeze { victim, choice, ms: 100 + random.below(1_400) }
            }
            8 => pick(random, &[Fault::StoreErased, Fault::StoreRolledBack]),
            9 => Fault::Repeat { times: 1 + random.below(4), seed: random.next() },
            10 => {
                let program = pick(random, &["sally", "sally-agent"]);
                Fault::Clock { program, hours: pick(random, &[-20, -1, 1, 5]) }
            }
            _ => {
                let point = pick(random, &["agent.journal.commit", "controller.ledger.commit"]);
                Fault::DiskError { point, nth: 1 + random.below(5) }
            }
        }
    }
}

impl Schedule {
    fn draw(seed: u64) -> Schedule {
        let mut random = Random::new(seed);
        let mut steps = Vec::new();
        let faults = 1 + random.below(4);
        let jobs = 6 + random.below(5);
        for _ in 0..jobs {
            let kind = pick(&mut random, &[Kind::Instant, Kind::Instant, Kind::Short, Kind::Large]);
            steps.push(Step::Job(kind, 1 + random.below(AGENTS)));
        }
        for _ in 0..faults {
            let at = random.below(steps.len() as u64) as usize;
            let fault = Fault::draw(&mut random);
            steps.insert(at, Step::Fault(fault));
        }
        let steps = steps.into_iter().map(|step| (random.between(GAP_MS).as_millis() as u64, step));
        Schedule { seed, steps: steps.collect() }
    }

    fn run(&self) -> (Tally, Vec<String>) {
        let mut world = World::new(AGENTS, self.seed);
        let has = |wanted: fn(&Fault) -> bool| {
            self.steps.iter().any(|(_, s)| matches!(s, Step::Fault(f) if wanted(f)))
        };
        let copy = has(|f| matches!(f, Fault::StoreRolledBack)).then(|| world.copy_of_store("first"));
        let replay = has(|f| matches!(f, Fault::Repeat { .. })).then(|| Replay::listen(&world));
        let over = Arc::new(AtomicBool::new(false));
        let mut ambushes = Vec::new();
        let mut armed = Vec::new();
        for (pause, step) in &self.steps {
            std::thread::sleep(Duration::from_millis(*pause));
            match *step {
                Step::Job(kind, agent) => drop(world.submit(kind, agent)),
                Step::Fault(Fault::Abort { point, nth }) => {
                    world.points.arm(point, &format!("abort:{nth}"));
                    armed.push(point);
                }
                Step::Fault(Fault::DiskError { point, nth }) => {
                    world.points.arm(point, &format!("error:{nth}"));
                    armed.push(point);
                }
                Step::Fault(Fault::Ambush { point, victim }) => {
                    world.points.arm(point, "pause");
                    if victim == Process::Keeper {
                        world.excuse("interrupted", 1);
                    }
                    ambushes.push(ambush(&world, point, victim, over.clone()));
                }
                Step::Fault(Fault::Kill { victim, choice }) => {
                    world.kill_one(victim, choice);
                    if victim == Process::Keeper {
                        world.excuse("interrupted", 1);
                    }
                }
                Step::Fault(Fault::Freeze { victim, choice, ms }) => {
                    let all = world.pids(victim);
                    if let Some(pid) = all.get((choice % all.len().max(1) as u64) as usize) {
                        world.freeze(*pid, Duration::from_millis(ms));
                    }
                }
                Step::Fault(Fault::StoreErased) => world.replace_store(None),
                Step::Fault(Fault::StoreRolledBack) => world.replace_store(copy.as_deref()),
                Step::Fault(Fault::Repeat { times, seed }) => {
                    if let Some(replay) = &replay {
                        replay.again(u32::try_from(times).unwrap(), seed);
                        world.struck();
                    }
                }
                Step::Fault(Fault::Clock { program, hours }) => {
                    world.points.clock(program, hours * 3_600_000);
                    world.struck();
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        let ambushed =
            ambushes.into_iter().filter_map(|thread| thread.join().ok()).filter(|hit| *hit).count();
        let hit = armed.into_iter().filter(|point| world.points.was_hit(point)).count();
        for _ in 0..ambushed + hit {
            world.struck();
        }
        drop(replay);
        world.judge()
    }
}

/// Waits for a process to come by a point, kills another, and lets the first one go on.
fn ambush(world: &World, point: &'static str, victim: Process, over: Arc<AtomicBool>) -> JoinHandle<bool> {
    let points = Points { dir: world.points.dir.clone() };
    let hit: PathBuf = points.dir.join(format!("{point}.hit"));
    let mut victims = world.victims();
    std::thread::spawn(move || {
        let until = Instant::now() + Duration::from_secs(5);
        while !hit.exists() {
            if over.load(Ordering::Relaxed) && Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let pid = victims(victim).first().copied();
        if let Some(pid) = pid {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        points.go_on(point);
        pid.is_some()
    })
}

/// Walks from seed to seed until time is up.
pub fn walk(row: &Row) {
    if let Ok(given) = std::env::var("SALLY_SEED") {
        let schedule = Schedule::draw(given.parse().expect("SALLY_SEED is a number"));
        println!("{schedule}");
        let (tally, problems) = schedule.run();
        println!("{tally:?}");
        assert!(problems.is_empty(), "{}", problems.join("\n"));
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<f64>().ok());
    let limit = number("SOAK_MINUTES").map_or(WALK, |minutes| Duration::from_secs_f64(minutes * 60.0));
    let first = number("SOAK_SEED").map_or_else(seed, |s| s as u64);
    println!("SOAK_SEED={first}");
    let workers = WORKERS_A_PROCESSOR * std::thread::available_parallelism().map_or(1, usize::from);
    let until = Instant::now() + limit;
    let next = AtomicU64::new(first);
    let sum = Mutex::new((Tally::default(), 0u64));
    let failures: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while Instant::now() < until && failures.lock().unwrap().len() < ENOUGH {
                    let schedule = Schedule::draw(next.fetch_add(1, Ordering::Relaxed));
                    let began = Instant::now();
                    let outcome = catch_unwind(AssertUnwindSafe(|| schedule.run()));
                    let took = began.elapsed();
                    let problems = match outcome {
                        Ok((tally, problems)) => {
                            let mut sum = sum.lock().unwrap();
                            sum.0.add(&tally);
                            sum.1 += 1;
                            problems
                        }
                        Err(panic) => vec![said(panic.as_ref())],
                    };
                    println!("seed {}: {took:.1?}, {} problems", schedule.seed, problems.len());
                    if !problems.is_empty() {
                        let text = format!("{schedule}{}", problems.join("\n"));
                        println!("FAILED {text}");
                        failures.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    let (tally, schedules) = sum.into_inner().unwrap();
    println!("{schedules} schedules");
    table::record(row.name, &tally);
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {schedules} schedules failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

#[test]
fn a_seed_is_a_schedule() {
    for seed in 0..200 {
        let text = Schedule::draw(seed).to_string();
        assert_eq!(text, Schedule::draw(seed).to_string());
        assert!(text.contains("Fault("), "{text}");
    }
}

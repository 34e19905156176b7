//! A random walk: schedules of jobs and faults, each drawn from a seed, each in a world of its own.
//!
//! `SOAK_MINUTES=N` walks for so long and not for the moment that every test run has; `SOAK_SEED=N` is the first seed.
//! `SALLY_SEED=N` carries out the one schedule of that seed: the same jobs and faults in the same order and with
//! the same pauses; what the processes do meanwhile is theirs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::disk::{self, AGENT_DISK_MIB, BROKER_DISK_MIB, CONTROLLER_DISK_KIB};
use super::judge::Tally;
use super::points::Points;
use super::replay::Replay;
use super::rows::Row;
use super::schedule::{AGENTS, Disk, Fault, Schedule, Step};
use super::table;
use super::world::{Process, World};
use crate::effects::seed;

/// How long the walk goes on in a test run. A schedule that has begun is carried to its end.
const WALK: Duration = Duration::from_secs(30);
/// Schedules at the same time for each processor: they wait most of the time.
const WORKERS_A_PROCESSOR: usize = 2;
/// Failures after which a walk ends early.
const ENOUGH: usize = 5;

/// File systems that a schedule wants, and what is done to them.
struct Disks {
    small: Option<PathBuf>,
    images: Vec<disk::Image>,
    _folder: tempfile::TempDir,
    _mounted: Option<disk::Mounted>,
}

impl Disks {
    /// Prepares the folder of a world. Without root there are none, and their faults do not strike.
    fn prepare(wanted: Option<Disk>, world: &Path) -> Disks {
        let folder = tempfile::tempdir().unwrap();
        let mut disks = Disks { small: None, images: Vec::new(), _folder: folder, _mounted: None };
        let Some(wanted) = wanted.filter(|_| disk::can_mount("a schedule with a disk of its own")) else {
            return disks;
        };
        let at = disks._folder.path();
        let part = match wanted {
            Disk::SmallOfAgent | Disk::ImageOfAgent => "agents/local-1/state",
            Disk::SmallOfController => "controller",
            Disk::ImageOfBroker => "jetstream",
        };
        let from = world.join("up").join(part);
        match wanted {
            Disk::SmallOfAgent | Disk::SmallOfController => {
                let agent = wanted == Disk::SmallOfAgent;
                let kib = if agent { AGENT_DISK_MIB * 1024 } else { CONTROLLER_DISK_KIB };
                disks._mounted = Some(disk::tmpfs(at, kib));
                disk::lead(&from, at);
                disks.small = Some(at.to_owned());
            }
            Disk::ImageOfAgent | Disk::ImageOfBroker => {
                let agent = wanted == Disk::ImageOfAgent;
                let image = disk::Image::make(at, if agent { AGENT_DISK_MIB } else { BROKER_DISK_MIB });
                disk::lead(&from, &image.at);
                disks.images.push(image);
            }
        }
        disks
    }
}

/// A schedule that is carried out.
struct Walk<'a> {
    schedule: &'a Schedule,
    world: World,
    disks: Disks,
    copy: Option<PathBuf>,
    replay: Option<Replay>,
    over: Arc<AtomicBool>,
    ambushes: Vec<JoinHandle<bool>>,
    armed: Vec<&'static str>,
    boots: u64,
}

impl Schedule {
    fn run(&self) -> (Tally, Vec<String>) {
        let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
        let disks = Disks::prepare(self.disk, dir.path());
        let world = World::in_folder(dir, AGENTS, self.seed);
        let has = |wanted: fn(&Fault) -> bool| {
            self.steps.iter().any(|(_, s)| matches!(s, Step::Fault(f) if wanted(f)))
        };
        let copy = has(|f| matches!(f, Fault::StoreRolledBack)).then(|| world.copy_of_store("first"));
        let replay = has(|f| matches!(f, Fault::Repeat { .. })).then(|| Replay::listen(&world));
        let mut walk = Walk {
            schedule: self,
            world,
            disks,
            copy,
            replay,
            over: Arc::new(AtomicBool::new(false)),
            ambushes: Vec::new(),
            armed: Vec::new(),
            boots: 0,
        };
        for (pause, step) in &self.steps {
            std::thread::sleep(Duration::from_millis(*pause));
            walk.step(*step);
        }
        walk.judge()
    }
}

impl Walk<'_> {
    fn step(&mut self, step: Step) {
        let world = &mut self.world;
        match step {
            Step::Job(manner, kind, agent) => drop(world.submit_in(manner, kind, agent)),
            Step::Cancel(number) => world.cancel_number(number),
            Step::Drain(agent) => world.drain(agent),
            Step::Resume(agent) => world.resume(agent),
            Step::Fault(fault) => self.strike(fault),
        }
    }

    fn strike(&mut self, fault: Fault) {
        let world = &mut self.world;
        match fault {
            Fault::Abort { point, nth } => {
                world.points.arm(point, &format!("abort:{nth}"));
                self.armed.push(point);
            }
            Fault::DiskError { point, nth } => {
                world.points.arm(point, &format!("error:{nth}"));
                self.armed.push(point);
            }
            Fault::Ambush { point, victim } => {
                world.points.arm(point, "pause");
                if victim == Process::Keeper {
                    world.excuse("interrupted", 1);
                }
                self.ambushes.push(ambush(world, point, victim, self.over.clone()));
            }
            Fault::Kill { victim, choice } => {
                world.kill_one(victim, choice);
                if victim == Process::Keeper {
                    world.excuse("interrupted", 1);
                }
            }
            Fault::Freeze { victim, choice, ms } => {
                let all = world.pids(victim);
                if let Some(pid) = all.get((choice % all.len().max(1) as u64) as usize) {
                    world.freeze(*pid, Duration::from_millis(ms));
                }
            }
            Fault::StoreErased => world.replace_store(None),
            Fault::StoreRolledBack => world.replace_store(self.copy.as_deref()),
            Fault::Repeat { times, seed } => {
                if let Some(replay) = &self.replay {
                    replay.again(u32::try_from(times).unwrap(), seed);
                    world.struck();
                }
            }
            Fault::Clock { program, hours } => {
                world.points.clock(program, hours * 3_600_000);
                world.struck();
            }
            Fault::JournalLost { agent } => {
                // What the agent was sent, or is sent before its new journal is heard of, may be known to nobody now.
                world.excuse("unknown", self.schedule.steps.len() as u64);
                let _ = std::fs::remove_file(world.agent_dir(agent).join("state/journal.redb"));
                world.kill_and_wait(&format!("local-{agent}"));
            }
            Fault::DiskFull { ms } => {
                let Some(small) = &self.disks.small else { return };
                let full = disk::fill(small);
                world.struck();
                // What found no room for its output or its result has failed, and says so.
                world.excuse("failed", self.schedule.steps.len() as u64);
                std::thread::sleep(Duration::from_millis(ms));
                drop(full);
            }
            Fault::PowerCut if self.disks.images.is_empty() => {}
            Fault::PowerCut if self.schedule.disk == Some(Disk::ImageOfBroker) => {
                disk::cut_power_of_broker(world, &mut self.disks.images);
            }
            Fault::PowerCut => {
                world.excuse("interrupted", world.jobs());
                self.boots += 1;
                disk::cut_power_of_agents(world, &mut self.disks.images, self.boots);
            }
        }
    }

    fn judge(self) -> (Tally, Vec<String>) {
        let Walk { mut world, disks, replay, over, ambushes, armed, .. } = self;
        over.store(true, Ordering::Relaxed);
        let ambushed =
            ambushes.into_iter().filter_map(|thread| thread.join().ok()).filter(|hit| *hit).count();
        let hit = armed.into_iter().filter(|point| world.points.was_hit(point)).count();
        for _ in 0..ambushed + hit {
            world.struck();
        }
        drop(replay);
        let verdict = world.judge();
        drop(disks);
        verdict
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

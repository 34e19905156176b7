//! What a seed is: jobs, what takes them back, faults, and the pauses between them.

use std::fmt;

use super::manner::Manner;
use super::points::{AGENT, CONTROLLER, OTHER};
use super::world::Process;
use crate::effects::{Kind, Random};

pub const AGENTS: u64 = 2;
/// Between two steps, in milliseconds.
const GAP_MS: (u64, u64) = (0, 120);
/// One schedule of so many has a disk that fills up or loses what was not written out.
const DISK_ONE_IN: u64 = 6;

#[derive(Debug, Clone, Copy)]
pub enum Fault {
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
    /// The agent's journal is removed, and its process killed.
    JournalLost {
        agent: u64,
    },
    /// A disk of [`Schedule::disk`] is full for a while.
    DiskFull {
        ms: u64,
    },
    /// The host of a disk of [`Schedule::disk`] loses power.
    PowerCut,
}

/// Whose state is on a file system of its own. One in a schedule at most: they are large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// That of the first agent, in memory.
    SmallOfAgent,
    /// That of the controller, in memory.
    SmallOfController,
    /// That of the first agent, in an image.
    ImageOfAgent,
    /// That of the broker, in an image.
    ImageOfBroker,
}

#[derive(Debug, Clone, Copy)]
pub enum Step {
    Job(Manner, Kind, u64),
    /// Of the job of this number, from 1.
    Cancel(u64),
    Drain(u64),
    Resume(u64),
    Fault(Fault),
}

/// What is done, and how long to wait before each step, in milliseconds.
pub struct Schedule {
    pub seed: u64,
    pub disk: Option<Disk>,
    pub steps: Vec<(u64, Step)>,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SALLY_SEED={} disk {:?}", self.seed, self.disk)?;
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
        match random.below(13) {
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
                Fault::Clock { program, hours: pick(random, &[-12, -1, 1, 5]) }
            }
            11 => Fault::JournalLost { agent: 1 + random.below(AGENTS) },
            _ => {
                let point = pick(random, &["agent.journal.commit", "controller.ledger.commit"]);
                Fault::DiskError { point, nth: 1 + random.below(5) }
            }
        }
    }
}

impl Step {
    fn draw_job(random: &mut Random) -> Step {
        let kinds = [Kind::Instant, Kind::Instant, Kind::Short, Kind::Large];
        let kind = pick(random, &kinds);
        let (manner, kind) = match random.below(10) {
            0..=3 => (Manner::Plain, kind),
            4 => (Manner::Idempotent, kind),
            5 => (Manner::Idempotent, Kind::Second),
            6 => (Manner::Priority(random.below(10)), kind),
            7 => (Manner::LatestOnly, kind),
            _ => (Manner::Direct, kind),
        };
        Step::Job(manner, kind, 1 + random.below(AGENTS))
    }
}

impl Disk {
    fn draw(random: &mut Random) -> (Disk, Fault) {
        let all = [Disk::SmallOfAgent, Disk::SmallOfController, Disk::ImageOfAgent, Disk::ImageOfBroker];
        let disk = pick(random, &all);
        let fault = match disk {
            Disk::SmallOfAgent | Disk::SmallOfController => Fault::DiskFull { ms: 200 + random.below(1_500) },
            Disk::ImageOfAgent | Disk::ImageOfBroker => Fault::PowerCut,
        };
        (disk, fault)
    }
}

impl Schedule {
    pub fn draw(seed: u64) -> Schedule {
        let mut random = Random::new(seed);
        let mut steps = Vec::new();
        let faults = 1 + random.below(4);
        let jobs = 6 + random.below(5);
        for _ in 0..jobs {
            steps.push(Step::draw_job(&mut random));
        }
        for _ in 0..faults {
            let fault = Fault::draw(&mut random);
            insert(&mut random, &mut steps, 0, Step::Fault(fault));
        }
        let disk = (random.below(DISK_ONE_IN) == 0).then(|| Disk::draw(&mut random));
        if let Some((_, fault)) = disk {
            insert(&mut random, &mut steps, 0, Step::Fault(fault));
        }
        for _ in 0..random.below(3) {
            // Of what has ended, is under way, or comes later.
            let number = 1 + random.below(jobs);
            insert(&mut random, &mut steps, 0, Step::Cancel(number));
        }
        if random.below(4) == 0 {
            let agent = 1 + random.below(AGENTS);
            let at = insert(&mut random, &mut steps, 0, Step::Drain(agent));
            insert(&mut random, &mut steps, at + 1, Step::Resume(agent));
        }
        let steps = steps.into_iter().map(|step| (random.between(GAP_MS).as_millis() as u64, step));
        Schedule { seed, disk: disk.map(|(disk, _)| disk), steps: steps.collect() }
    }
}

/// Puts a step somewhere, from an index on. Returns where.
fn insert(random: &mut Random, steps: &mut Vec<Step>, from: usize, step: Step) -> usize {
    let at = from + random.below((steps.len() - from) as u64 + 1) as usize;
    steps.insert(at, step);
    at
}

#[test]
fn a_seed_is_a_schedule() {
    for seed in 0..200 {
        let text = Schedule::draw(seed).to_string();
        assert_eq!(text, Schedule::draw(seed).to_string());
        assert!(text.contains("Fault("), "{text}");
    }
}

/// Whatever can be drawn is drawn, and soon.
#[test]
fn every_kind_of_step_is_drawn() {
    let all: String = (0..200).map(|seed| Schedule::draw(seed).to_string()).collect();
    for word in [
        "Plain",
        "Idempotent",
        "Second",
        "Priority",
        "LatestOnly",
        "Direct",
        "Cancel",
        "Drain",
        "Resume",
        "Abort",
        "Ambush",
        "Kill",
        "Freeze",
        "StoreErased",
        "StoreRolledBack",
        "Repeat",
        "Clock",
        "DiskError",
        "JournalLost",
        "DiskFull",
        "PowerCut",
        "SmallOfAgent",
        "SmallOfController",
        "ImageOfAgent",
        "ImageOfBroker",
    ] {
        assert!(all.contains(word), "{word}");
    }
}

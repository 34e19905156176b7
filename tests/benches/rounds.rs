//! What is measured, in rounds that take turns: a machine that drifts drifts under both.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sally_common::wire::command::Lane;

use super::floor::{self, Bare};
use super::report::{Isolation, Latency, Load, Report, Samples};
use super::sally_side::{IN_FLIGHT, Sally};
use super::sandbox_side::{self, Boxes, Kind};
use super::{Fallible, process};

/// Submissions of one turn.
const TURN: usize = 10;
/// Runs whose throughput is measured, in turns.
const RUNS: usize = 2_000;
const RUN_TURNS: usize = 4;
/// Turns of one job on every agent.
const MANY_TURNS: usize = 10;
/// Bytes of output, and how often.
const OUTPUT_BYTES: u64 = 100_000_000;
const OUTPUT_TURNS: usize = 3;

/// What the command line asks for.
pub(crate) struct Options {
    rounds: usize,
    agents: usize,
    only: Option<String>,
    beside: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments; `--bench` is cargo's own.
    pub(crate) fn parse(args: &[String]) -> Fallible<Self> {
        let mut options = Options { rounds: 20, agents: 100, only: None, beside: None };
        let mut args = args.iter().filter(|a| *a != "--bench");
        while let Some(arg) = args.next() {
            let value = args.next().ok_or_else(|| format!("{arg} wants a value"))?;
            match arg.as_str() {
                "--rounds" => options.rounds = value.parse()?,
                "--agents" => options.agents = value.parse()?,
                "--only" => options.only = Some(value.clone()),
                "--beside" => options.beside = Some(value.into()),
                _ => {
                    return Err(
                        format!("{arg} is no option: use --rounds, --agents, --only, --beside").into()
                    );
                }
            }
        }
        Ok(options)
    }

    fn wants(&self, what: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only.split(',').any(|o| o == what))
    }
}

/// Measures and prints.
pub(crate) async fn run(options: &Options) -> Fallible<()> {
    let server = sally::broker::find::find(&sally::broker::find::Search::from_process(None)).await?;
    process::programs()?;
    let dir = Scratch::new()?;
    let mut report = Report::new(&server);
    if options.wants("latency") || options.wants("throughput") || options.wants("output") {
        let mut bare = Bare::start(&server.path, &dir.path("bare"), 1).await?;
        let sally = Sally::start(&server.path, &dir.path("sally"), 1).await?;
        report.worker_pss_kib = bare.worker_pss_kib();
        report.agent_pss = sally.agent_pss_kib();
        let mut other = None;
        if let Some(programs) = &options.beside {
            let programs = process::programs_in(programs)?;
            other = Some(Sally::start_of(&programs, &server.path, &dir.path("beside"), 1).await?);
        }
        if options.wants("latency") {
            report.latency = Some(latency(options, &mut bare, &sally, other.as_ref()).await?);
        }
        if options.wants("throughput") {
            report.throughput = Some(throughput(&mut bare, &sally, other.as_ref()).await?);
        }
        if options.wants("output") {
            output(&sally, &mut report).await?;
        }
    }
    if options.wants("many") {
        let mut bare = Bare::start(&server.path, &dir.path("bare-many"), options.agents).await?;
        let begun = Instant::now();
        let sally = Sally::start(&server.path, &dir.path("sally-many"), options.agents).await?;
        report.up = Some((options.agents, begun.elapsed()));
        many(options, &mut bare, &sally, &mut report).await?;
        report.many_pss = Some(sally.agent_pss_kib());
    }
    if options.wants("sandbox") {
        sandbox(options, &dir, &mut report).await?;
    }
    report.print();
    Ok(())
}

async fn latency(
    options: &Options,
    bare: &mut Bare,
    sally: &Sally,
    other: Option<&Sally>,
) -> Fallible<Latency> {
    let mut found = Latency::default();
    // The first turn warms up.
    for round in 0..=options.rounds {
        for _ in 0..TURN {
            let begun = Instant::now();
            floor::spawn_shell().await?;
            found.spawn.add(round, begun.elapsed());
        }
        for _ in 0..TURN {
            found.bare.add(round, bare.one().await?);
        }
        for _ in 0..TURN {
            found.sally.add(round, sally.one().await?);
        }
        for _ in 0..TURN {
            found.direct.add(round, sally.one_by(Lane::Direct).await?);
        }
        if let Some(other) = other {
            for _ in 0..TURN {
                found.other.add(round, other.one().await?);
            }
        }
    }
    Ok(found)
}

async fn throughput(
    bare: &mut Bare,
    sally: &Sally,
    other: Option<&Sally>,
) -> Fallible<(Load, Load, Option<Load>)> {
    let (mut bare_load, mut sally_load, mut other_load) = (Load::default(), Load::default(), None);
    for _ in 0..RUN_TURNS {
        let runs = RUNS / RUN_TURNS;
        let before = (process::cpu_seconds(&bare.pids()), process::own_cpu_seconds());
        let lasted = bare.many(runs, IN_FLIGHT).await?;
        bare_load.add(runs, lasted, before, &bare.pids());
        load(sally, runs, &mut sally_load).await?;
        if let Some(other) = other {
            load(other, runs, other_load.get_or_insert_default()).await?;
        }
    }
    Ok((bare_load, sally_load, other_load))
}

async fn load(sally: &Sally, runs: usize, load: &mut Load) -> Fallible<()> {
    let before = (process::cpu_seconds(&sally.pids()), process::own_cpu_seconds());
    let lasted = sally.many(runs, IN_FLIGHT).await?;
    // What goes on after the last record (receipts, the next sandbox) belongs to it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    load.add(runs, lasted, before, &sally.pids());
    Ok(())
}

async fn many(options: &Options, bare: &mut Bare, sally: &Sally, report: &mut Report) -> Fallible<()> {
    let (mut bare_times, mut sally_times) = (Samples::default(), Samples::default());
    for round in 0..=MANY_TURNS {
        bare_times.add(round, bare.all().await?);
        sally_times.add(round, sally.all(options.agents).await?);
    }
    report.many = Some((bare_times, sally_times));
    Ok(())
}

/// The sandbox without anything around it: each turn has all of them.
async fn sandbox(options: &Options, dir: &Scratch, report: &mut Report) -> Fallible<()> {
    let mut whole = Boxes::start(&dir.path("boxes"), Kind::Whole, 280_000).await?;
    let mut lean = Boxes::start(&dir.path("boxes-lean"), Kind::WithoutGroups, 281_000).await?;
    let has_bwrap = sandbox_side::has_bwrap().await;
    let mut found = Isolation::default();
    for round in 0..=options.rounds {
        for _ in 0..TURN {
            let begun = Instant::now();
            floor::spawn_shell().await?;
            found.spawn.add(round, begun.elapsed());
        }
        for _ in 0..TURN {
            found.lean.add(round, lean.one().await?);
        }
        for _ in 0..TURN {
            found.whole.add(round, whole.one().await?);
        }
        for _ in 0..TURN {
            found.again.add(round, whole.again().await?);
        }
        for _ in 0..if has_bwrap { TURN } else { 0 } {
            let begun = Instant::now();
            sandbox_side::bwrap().await?;
            found.bwrap.add(round, begun.elapsed());
        }
    }
    for _ in 0..RUN_TURNS {
        let runs = RUNS / RUN_TURNS;
        let before = (0.0, process::own_cpu_seconds());
        let begun = Instant::now();
        for _ in 0..runs / 2 {
            let (a, b) = tokio::join!(floor::spawn_shell(), floor::spawn_shell());
            a?;
            b?;
        }
        found.bare_load.add(runs, begun.elapsed(), before, &[]);
        for (boxes, load) in [(&mut lean, &mut found.lean_load), (&mut whole, &mut found.whole_load)] {
            let before = (process::cpu_seconds(&boxes.pids()), process::own_cpu_seconds());
            let lasted = boxes.many(runs).await?;
            load.add(runs, lasted, before, &boxes.pids());
        }
    }
    found.keeper_pss_kib = whole.keeper_pss_kib();
    found.slot_pss_kib = whole.slot_pss_kib();
    report.sandbox = Some(found);
    Ok(())
}

async fn output(sally: &Sally, report: &mut Report) -> Fallible<()> {
    let mut times = Samples::default();
    for round in 0..=OUTPUT_TURNS {
        times.add(round, sally.output(OUTPUT_BYTES).await?);
    }
    report.output = Some((OUTPUT_BYTES, times, sally.peak_kib()));
    Ok(())
}

/// A folder for everything, removed at the end. Slots run under user ids of their own.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Fallible<Self> {
        Ok(Self(tempfile::Builder::new().prefix("sally-bench-").tempdir()?))
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::join(self.0.path(), name)
    }
}

//! What was measured, as ratios to the floor with the absolute numbers beside them.

use std::time::Duration;

use sally::broker::find::NatsServer;

use super::process;

/// Times of one kind.
#[derive(Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Adds a time; those of round 0 warm up and do not count.
    pub(crate) fn add(&mut self, round: usize, time: Duration) {
        if round > 0 {
            self.0.push(time);
        }
    }

    /// The time that this share of all is not above, milliseconds.
    fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * share).round() as usize).map_or(0.0, |d| d.as_secs_f64() * 1000.0)
    }
}

/// Many runs and what they cost.
#[derive(Default)]
pub(crate) struct Load {
    runs: usize,
    seconds: f64,
    cpu: f64,
}

impl Load {
    /// Adds a turn; `before` is what had been used by these processes and this one.
    pub(crate) fn add(&mut self, runs: usize, lasted: Duration, before: (f64, f64), pids: &[i32]) {
        self.runs += runs;
        self.seconds += lasted.as_secs_f64();
        self.cpu += process::cpu_seconds(pids) - before.0 + process::own_cpu_seconds() - before.1;
    }

    fn per_second(&self) -> f64 {
        self.runs as f64 / self.seconds
    }

    fn cpu_ms(&self) -> f64 {
        self.cpu * 1000.0 / self.runs as f64
    }
}

/// One run after the other.
#[derive(Default)]
pub(crate) struct Latency {
    /// The bare spawn.
    pub(crate) spawn: Samples,
    /// The bare loop.
    pub(crate) bare: Samples,
    /// Sally, by the queue.
    pub(crate) sally: Samples,
    /// Sally, by the direct lane.
    pub(crate) direct: Samples,
    /// The programs of another build, by the queue; empty where none was named.
    pub(crate) other: Samples,
}

/// The sandbox alone.
#[derive(Default)]
pub(crate) struct Isolation {
    /// The bare spawn.
    pub(crate) spawn: Samples,
    /// All layers but control groups.
    pub(crate) lean: Samples,
    /// All layers.
    pub(crate) whole: Samples,
    /// All layers, always the same slot.
    pub(crate) again: Samples,
    /// `bwrap`; empty where it is not installed.
    pub(crate) bwrap: Samples,
    /// The bare spawn, two at a time.
    pub(crate) bare_load: Load,
    /// All layers but control groups, two slots at a time.
    pub(crate) lean_load: Load,
    /// All layers, two slots at a time.
    pub(crate) whole_load: Load,
    /// Of one idle keeper.
    pub(crate) keeper_pss_kib: u64,
    /// Of one idle slot: keeper, forker, the sandbox that waits.
    pub(crate) slot_pss_kib: u64,
}

/// Everything.
pub(crate) struct Report {
    server: String,
    /// One run after the other.
    pub(crate) latency: Option<Latency>,
    /// Bare loop, Sally, another build.
    pub(crate) throughput: Option<(Load, Load, Option<Load>)>,
    /// Bare loop, Sally.
    pub(crate) many: Option<(Samples, Samples)>,
    /// Bytes, times, largest process in KiB.
    pub(crate) output: Option<(u64, Samples, u64)>,
    /// Agents, and how long `up` took to be ready.
    pub(crate) up: Option<(usize, Duration)>,
    /// Of one idle bare worker.
    pub(crate) worker_pss_kib: u64,
    /// Of one idle agent with launcher and keepers, and the number of processes.
    pub(crate) agent_pss: (u64, usize),
    /// The same among many agents.
    pub(crate) many_pss: Option<(u64, usize)>,
    /// The sandbox alone.
    pub(crate) sandbox: Option<Isolation>,
}

impl Report {
    /// Nothing measured yet.
    pub(crate) fn new(server: &NatsServer) -> Self {
        Self {
            server: server.version.to_string(),
            latency: None,
            throughput: None,
            many: None,
            output: None,
            up: None,
            worker_pss_kib: 0,
            agent_pss: (0, 0),
            many_pss: None,
            sandbox: None,
        }
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        let kernel = nix::sys::utsname::uname()
            .map(|u| u.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        println!(
            "sally {}, nats-server {}, kernel {kernel}, {cores} cores",
            env!("CARGO_PKG_VERSION"),
            self.server
        );
        println!("floor: a bare JetStream loop around `sh -c true`; ratio = Sally / floor");
        println!();
        println!("{:<46} {:>10} {:>10} {:>7}", "", "floor", "sally", "ratio");
        if let Some(latency) = &self.latency {
            latency.print();
        }
        if let Some((bare, sally, other)) = &self.throughput {
            row("runs per second", bare.per_second(), sally.per_second(), true);
            row("CPU ms per run, all processes", bare.cpu_ms(), sally.cpu_ms(), false);
            if let Some(other) = other {
                beside("runs per second", other.per_second(), sally.per_second(), true);
                beside("CPU ms per run, all processes", other.cpu_ms(), sally.cpu_ms(), false);
            }
        }
        if let Some((bare, sally)) = &self.many {
            let agents = self.up.map_or(0, |(n, _)| n);
            row(&format!("one job on {agents} agents, p50, ms"), bare.at(0.5), sally.at(0.5), false);
            row("  the slowest, ms", bare.at(1.0), sally.at(1.0), false);
        }
        self.print_rest();
        if let Some(sandbox) = &self.sandbox {
            sandbox.print();
        }
    }

    fn print_rest(&self) {
        let mib = |kib: u64| kib as f64 / 1024.0;
        if self.agent_pss.1 > 0 {
            row(
                &format!("idle agent, launcher, keepers ({}), PSS MiB", self.agent_pss.1),
                mib(self.worker_pss_kib),
                mib(self.agent_pss.0),
                false,
            );
        }
        if let (Some((agents, ready)), Some((kib, processes))) = (self.up, self.many_pss) {
            println!(
                "{agents} agents: up ready in {:.1} s, one agent ({processes}) {:.1} MiB PSS",
                ready.as_secs_f64(),
                mib(kib)
            );
        }
        if let Some((bytes, times, peak)) = &self.output {
            let seconds = times.at(0.5) / 1000.0;
            println!(
                "{} MB of output, complete: {:.0} MB/s, largest process {:.0} MiB",
                bytes / 1_000_000,
                *bytes as f64 / 1e6 / seconds,
                mib(*peak)
            );
        }
    }
}

impl Latency {
    fn print(&self) {
        let (spawn, bare, sally) = (&self.spawn, &self.bare, &self.sally);
        for (name, share) in [("p50", 0.5), ("p95", 0.95)] {
            row(&format!("one run, {name}, ms"), bare.at(share), sally.at(share), false);
        }
        row("one run by the direct lane, p50, ms", bare.at(0.5), self.direct.at(0.5), false);
        row("  one run against the bare spawn, p50, ms", spawn.at(0.5), sally.at(0.5), false);
        row("  the bare loop against the bare spawn", spawn.at(0.5), bare.at(0.5), false);
        if self.other.at(0.5) > 0.0 {
            beside("one run, p50, ms", self.other.at(0.5), sally.at(0.5), false);
            beside("one run, p95, ms", self.other.at(0.95), sally.at(0.95), false);
        }
    }
}

impl Isolation {
    fn print(&self) {
        println!();
        println!("the sandbox alone; floor: `sh -c true` with three pipes by posix_spawn");
        let bare = self.spawn.at(0.5);
        row("strict without control groups, p50, ms", bare, self.lean.at(0.5), false);
        row("strict, all layers, p50, ms", bare, self.whole.at(0.5), false);
        row("  p95", self.spawn.at(0.95), self.whole.at(0.95), false);
        row("  its sandbox not ready yet, p50, ms", bare, self.again.at(0.5), false);
        if self.bwrap.at(0.5) > 0.0 {
            row("bwrap --unshare-all, p50, ms", bare, self.bwrap.at(0.5), false);
            let share = |of: &Samples| of.at(0.5) / self.bwrap.at(0.5);
            println!(
                "strict / bwrap: {:.2} without control groups, {:.2} with",
                share(&self.lean),
                share(&self.whole)
            );
        } else {
            println!("bwrap is not here, or does not work here: not compared");
        }
        let (bare, lean, whole) = (&self.bare_load, &self.lean_load, &self.whole_load);
        row("two at a time, without control groups, CPU ms", bare.cpu_ms(), lean.cpu_ms(), false);
        row("two at a time, all layers, CPU ms", bare.cpu_ms(), whole.cpu_ms(), false);
        row("two at a time, all layers, runs per second", bare.per_second(), whole.per_second(), true);
        println!("idle: keeper {} KiB PSS, slot {} KiB PSS", self.keeper_pss_kib, self.slot_pss_kib);
    }
}

/// The same against the other build.
fn beside(name: &str, other: f64, sally: f64, more_is_better: bool) {
    row(&format!("  beside: {name}"), other, sally, more_is_better);
}

fn row(name: &str, floor: f64, sally: f64, more_is_better: bool) {
    let ratio = sally / floor;
    let note = if more_is_better { "  (more is better)" } else { "" };
    println!("{name:<46} {floor:>10.2} {sally:>10.2} {ratio:>7.2}{note}");
}

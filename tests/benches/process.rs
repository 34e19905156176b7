//! Programs that the benchmark starts and ends, by pid, and what they cost.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Fallible;

/// How long a program may take to be ready, or to end.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The folder of the optimised programs: this one stands in its `deps`.
pub(crate) fn programs() -> Fallible<PathBuf> {
    let own = std::env::current_exe()?;
    programs_in(own.parent().and_then(Path::parent).ok_or("this program stands nowhere")?)
}

/// The same of another build.
pub(crate) fn programs_in(dir: &Path) -> Fallible<PathBuf> {
    for name in ["sally", "sally-agent"] {
        if !dir.join(name).is_file() {
            return Err(format!("{} is not built: run `make bench`", dir.join(name).display()).into());
        }
    }
    Ok(dir.to_owned())
}

/// A program under way; ended when dropped.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts a program with its standard output kept for [`Running::wait_for_line`].
    pub(crate) fn start(command: &mut Command, log: &Path) -> Fallible<Self> {
        let log = std::fs::File::create(log)?;
        Ok(Self { child: command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()? })
    }

    /// Waits for this line on standard output.
    pub(crate) fn wait_for_line(&mut self, wanted: &str) -> Fallible<()> {
        let stdout = self.child.stdout.take().ok_or("its output was read already")?;
        for line in BufReader::new(stdout).lines() {
            if line? == wanted {
                return Ok(());
            }
        }
        Err(format!("it ended and never said \"{wanted}\"").into())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let until = Instant::now() + LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > until {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What `/proc/PID/stat` says of a process.
struct Stat {
    parent: i32,
    ticks: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // utime, stime, and both of the children that were waited for.
    let ticks = fields.get(11..15)?.iter().filter_map(|f| f.parse::<u64>().ok()).sum();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

/// These processes and all below them.
pub(crate) fn tree(roots: &[i32]) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = roots.to_vec();
    let mut at = 0;
    while let Some(pid) = found.get(at) {
        found.extend(children.get(pid).into_iter().flatten());
        at += 1;
    }
    found
}

/// CPU seconds that these processes, their children now and their children before have used.
pub(crate) fn cpu_seconds(roots: &[i32]) -> f64 {
    let ticks: u64 = tree(roots).into_iter().filter_map(stat).map(|s| s.ticks).sum();
    ticks as f64 / ticks_per_second()
}

/// CPU seconds of this process alone: the submitter.
pub(crate) fn own_cpu_seconds() -> f64 {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    stat(own).map_or(0.0, |s| s.ticks as f64 / ticks_per_second())
}

fn ticks_per_second() -> f64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64
}

/// The children of a process.
pub(crate) fn children(parent: i32) -> Vec<i32> {
    tree(&[parent]).into_iter().filter(|pid| stat(*pid).is_some_and(|s| s.parent == parent)).collect()
}

/// Proportional memory of these processes and all below them, KiB.
pub(crate) fn pss_kib(roots: &[i32]) -> u64 {
    pss_of(&tree(roots))
}

/// Proportional memory of these processes, KiB.
pub(crate) fn pss_of(pids: &[i32]) -> u64 {
    let of = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        number_after(&text, "Pss:")
    };
    pids.iter().copied().map(of).sum()
}

/// The most memory that one of these processes has held, KiB.
pub(crate) fn peak_kib(roots: &[i32]) -> u64 {
    let of = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        number_after(&text, "VmHWM:")
    };
    tree(roots).into_iter().map(of).max().unwrap_or(0)
}

fn number_after(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

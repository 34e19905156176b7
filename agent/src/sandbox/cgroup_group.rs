//! One slot's control group: its files as descriptors, the limits of an attempt, and what it used.
#![forbid(unsafe_code)]

use super::cgroup::Controller;
use super::definition::Rates;
use super::forker::OWN_PROCESSES;
use super::layer::{Hold, Layer, Layers};
use super::plan::Limits;
use super::step::{Step, StepError};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const STEP: &str = "cgroup";

/// How long a limit may wait until what an attempt before it had is free.
const FREE_LIMIT: Duration = Duration::from_secs(5);

/// How often it is tried meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Processor weight of a slot beside the host's other work, as a share of the usual (100 of version 2).
const WEIGHT: (&str, &str) = ("50", "512");

/// The group of a slot. Every part may be missing.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// `cgroup.procs` of each hierarchy, to be joined.
    join: Vec<File>,
    /// Whether this process, and so each of its children, is in the group.
    joined: bool,
    memory: Option<Memory>,
    pids: Option<Pids>,
    cpu: Option<Cpu>,
    /// Whether weight and quota are in force, not the account alone.
    cpu_controlled: bool,
    /// Kills everything in the group (version 2).
    kill: Option<File>,
    /// Which of the rates that a definition wants are in force: processors, disks.
    rates: [Option<Hold>; 2],
    /// The limits that are set.
    set: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Memory {
    limit: File,
    /// Memory and swap together (version 1), or swap alone (version 2).
    swap: Option<File>,
    peak: Option<File>,
    current: File,
    events: File,
    v2: bool,
    /// Says that memory ran out (version 1, where the kernel kills only one process).
    alarm: Option<EventFd>,
}

#[derive(Debug)]
struct Pids {
    max: File,
    events: File,
    peak: Option<File>,
}

#[derive(Debug)]
struct Cpu {
    account: File,
    v2: bool,
}

/// What the group's counters said at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    cpu_us: Option<u64>,
    memory: u64,
    memory_peak: Option<u64>,
    oom_kills: u64,
    pids_peak: Option<u64>,
    pids_refused: u64,
}

/// What an attempt used, by its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) cpu_us: Option<u64>,
    pub(super) memory_peak: Option<u64>,
    pub(super) pids_peak: Option<u64>,
    /// The kernel killed for want of memory.
    pub(super) out_of_memory: bool,
    /// A process could not be made because of the limit.
    pub(super) out_of_processes: bool,
}

impl Group {
    /// Makes and opens a group of version 2.
    pub(super) fn open_v2(folder: &Path, controllers: &[Controller]) -> Group {
        let Some(join) = make(folder) else { return Group::default() };
        let has = |controller| controllers.contains(&controller);
        let file = |name: &str| write(&folder.join(name));
        let memory = has(Controller::Memory).then(|| {
            // If one process of the tree goes, the whole tree goes.
            let _ = fs::write(folder.join("memory.oom.group"), "1");
            Some(Memory {
                limit: file("memory.max")?,
                swap: file("memory.swap.max"),
                peak: file("memory.peak").or_else(|| read(&folder.join("memory.peak"))),
                current: read(&folder.join("memory.current"))?,
                events: read(&folder.join("memory.events"))?,
                v2: true,
                alarm: None,
            })
        });
        let cpu_controlled = has(Controller::Cpu) && fs::write(folder.join("cpu.weight"), WEIGHT.0).is_ok();
        Group {
            join: vec![join],
            joined: false,
            memory: memory.flatten(),
            pids: if has(Controller::Pids) { Pids::open(folder) } else { None },
            cpu: read(&folder.join("cpu.stat")).map(|account| Cpu { account, v2: true }),
            cpu_controlled,
            kill: file("cgroup.kill"),
            rates: [None; 2],
            set: None,
        }
    }

    /// Makes and opens the groups of version 1, one for each controller.
    pub(super) fn open_v1(folders: &[(Controller, PathBuf)]) -> Group {
        let mut group = Group::default();
        for (controller, folder) in folders {
            let Some(join) = make(folder) else { continue };
            match controller {
                Controller::Memory => group.memory = Memory::open_v1(folder),
                Controller::Pids => group.pids = Pids::open(folder),
                Controller::Cpu => {
                    group.cpu_controlled = fs::write(folder.join("cpu.shares"), WEIGHT.1).is_ok();
                }
                // No hierarchy of version 1 has it by this name.
                Controller::Io => {}
                Controller::CpuAccount => {
                    let account = read(&folder.join("cpuacct.usage"));
                    group.cpu = account.map(|account| Cpu { account, v2: false });
                }
            }
            // With one mount for several controllers the group is joined once for each, which is harmless.
            group.join.push(join);
        }
        group
    }

    /// The group without what a test leaves out.
    pub(super) fn without(self, broken: &[Layer]) -> Group {
        let broken = |layer| broken.contains(&layer);
        if broken(Layer::Cgroup) {
            let rates = self.rates.map(|rate| rate.map(|_| Hold::Absent));
            return Group { rates, ..Group::default() };
        }
        Group {
            memory: self.memory.filter(|_| !broken(Layer::CgroupMemory)),
            pids: self.pids.filter(|_| !broken(Layer::CgroupPids)),
            cpu_controlled: self.cpu_controlled && !broken(Layer::CgroupCpu),
            ..self
        }
    }

    /// The group with what became of a definition's rates.
    pub(super) fn with_rates(self, wanted: &Rates, quota: bool, disks: Hold) -> Group {
        let quota = if quota { Hold::Enforced } else { Hold::Absent };
        let rates = [wanted.cpu_percent.map(|_| quota), wanted.limits_disks().then_some(disks)];
        Group { rates, ..self }
    }

    /// Every descriptor, to be kept where all others are closed.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        let memory = self.memory.iter().flat_map(|m| {
            let files = [Some(&m.limit), m.swap.as_ref(), m.peak.as_ref(), Some(&m.current), Some(&m.events)];
            files
                .into_iter()
                .flatten()
                .map(AsRawFd::as_raw_fd)
                .chain(m.alarm.iter().map(|a| a.as_fd().as_raw_fd()))
        });
        let pids = self.pids.iter().flat_map(|p| [Some(&p.max), Some(&p.events), p.peak.as_ref()]);
        let others =
            pids.flatten().chain(self.cpu.iter().map(|c| &c.account)).chain(&self.kill).chain(&self.join);
        memory.chain(others.map(AsRawFd::as_raw_fd)).collect()
    }

    /// Whether there is a group to be joined.
    pub(super) fn is_there(&self) -> bool {
        !self.join.is_empty()
    }

    /// Puts the calling process, which must have one thread, into the group. Takes milliseconds.
    pub(super) fn join(&mut self) -> io::Result<()> {
        self.join.iter().try_for_each(|procs| write_at(procs, "0"))?;
        self.joined = true;
        Ok(())
    }

    /// What holds for a process that was born in the group, once [`Group::begin`] has set the limits.
    pub(super) fn layers(&self) -> Layers {
        let hold = |there: bool| if there { Hold::Enforced } else { Hold::Absent };
        let parts = [
            (Layer::CgroupMemory, hold(self.limits_memory())),
            (Layer::CgroupPids, hold(self.limits_processes())),
            (Layer::CgroupCpu, hold(self.cpu_controlled && self.counts_cpu())),
        ];
        let whole = match parts.iter().filter(|(_, hold)| *hold == Hold::Enforced).count() {
            0 => Hold::Absent,
            3 => Hold::Enforced,
            _ => Hold::Degraded,
        };
        let rates = [Layer::CgroupCpuQuota, Layer::CgroupIo].into_iter().zip(self.rates);
        // A rate is set on the group: it holds for those who are in it.
        let rates = rates.filter_map(|(layer, hold)| {
            Some((layer, hold.filter(|_| self.joined).or(hold.map(|_| Hold::Absent))?))
        });
        parts.into_iter().chain([(Layer::Cgroup, whole)]).chain(rates).collect()
    }

    /// Whether memory of this process is limited by the group, so that it needs no limit of its own.
    pub(super) fn limits_memory(&self) -> bool {
        self.joined && self.memory.is_some()
    }

    /// Whether the number of processes is limited by the group.
    pub(super) fn limits_processes(&self) -> bool {
        self.joined && self.pids.is_some()
    }

    /// Whether processor time of the tree is counted.
    pub(super) fn counts_cpu(&self) -> bool {
        self.joined && self.cpu.is_some()
    }

    /// Becomes readable when memory ran out and the kernel will kill only one process of the tree.
    pub(super) fn alarm(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref()?.alarm.as_ref().map(AsFd::as_fd)
    }

    /// Takes note of the alarm, so that it can be heard again.
    pub(super) fn hear_alarm(&self) {
        if let Some(alarm) = self.memory.as_ref().and_then(|memory| memory.alarm.as_ref()) {
            let _ = alarm.read();
        }
    }

    /// Sets the limits of an attempt and returns the counters it starts from.
    pub(super) fn begin(&mut self, limits: &Limits) -> Result<Counters, StepError> {
        let wanted = (limits.memory_bytes, limits.processes);
        if self.set != Some(wanted) {
            // Until both are set neither is known to be.
            self.set = None;
            if let Some(memory) = &self.memory {
                memory.limit(limits.memory_bytes).step(STEP, "memory limit")?;
            }
            if let Some(pids) = &self.pids {
                let most = limits.processes.saturating_add(OWN_PROCESSES);
                write_at(&pids.max, &most.to_string()).step(STEP, "process limit")?;
            }
            self.set = Some(wanted);
        }
        self.hear_alarm(); // One of the attempt before.
        if let Some(peak) = self.memory.as_ref().and_then(|memory| memory.peak.as_ref()) {
            let _ = write_at(peak, "0"); // Where the kernel cannot, only a higher peak is believed.
        }
        Ok(self.counters())
    }

    /// Reads all counters. One that cannot be read is as if nothing was used.
    pub(super) fn counters(&self) -> Counters {
        let mut counters = Counters { cpu_us: self.cpu_us(), ..Counters::default() };
        if let Some(memory) = &self.memory {
            counters.memory = number(&memory.current).unwrap_or_default();
            counters.memory_peak = memory.peak.as_ref().and_then(number);
            counters.oom_kills = value(&text(&memory.events), "oom_kill").unwrap_or_default();
        }
        if let Some(pids) = &self.pids {
            counters.pids_peak = pids.peak.as_ref().and_then(number);
            counters.pids_refused = value(&text(&pids.events), "max").unwrap_or_default();
        }
        counters
    }

    /// Processor time of everything that ever was in the group.
    pub(super) fn cpu_us(&self) -> Option<u64> {
        let cpu = self.cpu.as_ref()?;
        if cpu.v2 { value(&text(&cpu.account), "usage_usec") } else { Some(number(&cpu.account)? / 1000) }
    }

    /// Kills everything in the group, where the kernel can.
    pub(super) fn kill(&self) {
        if let Some(kill) = &self.kill {
            let _ = write_at(kill, "1");
        }
    }
}

impl Counters {
    /// Processor time since this moment, in microseconds; `None` if nobody counts it.
    pub(super) fn cpu_since(&self, group: &Group) -> Option<u64> {
        Some(group.cpu_us()?.saturating_sub(self.cpu_us?))
    }

    /// What was used between two moments. The group outlives an attempt: what it held before (files read into
    /// memory by an attempt before, say) is not this one's.
    pub(super) fn until(&self, end: &Counters, limit: u64) -> Used {
        let out_of_memory = end.oom_kills > self.oom_kills;
        let rose =
            |before: Option<u64>, after: Option<u64>| after.filter(|after| before.is_none_or(|b| *after > b));
        let memory_peak = rose(self.memory_peak, end.memory_peak);
        Used {
            cpu_us: self.cpu_us.zip(end.cpu_us).map(|(before, after)| after.saturating_sub(before)),
            memory_peak: match memory_peak {
                // Whatever the mark says: a kernel that cannot reset it has it from an attempt before.
                _ if out_of_memory => Some(limit),
                // At the limit the kernel takes back what was held before.
                Some(peak) if peak >= limit => Some(peak),
                other => other.map(|peak| peak.saturating_sub(self.memory)),
            },
            pids_peak: rose(self.pids_peak, end.pids_peak).map(|peak| peak.saturating_sub(OWN_PROCESSES)),
            out_of_memory,
            out_of_processes: end.pids_refused > self.pids_refused,
        }
    }
}

impl Memory {
    fn open_v1(folder: &Path) -> Option<Memory> {
        let events = folder.join("memory.oom_control");
        let events = read(&events)?;
        let alarm = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok();
        let alarm = alarm.filter(|alarm| {
            let line = format!("{} {}", alarm.as_fd().as_raw_fd(), events.as_raw_fd());
            fs::write(folder.join("cgroup.event_control"), line).is_ok()
        });
        Some(Memory {
            limit: write(&folder.join("memory.limit_in_bytes"))?,
            swap: write(&folder.join("memory.memsw.limit_in_bytes")),
            peak: write(&folder.join("memory.max_usage_in_bytes")),
            current: read(&folder.join("memory.usage_in_bytes"))?,
            events,
            v2: false,
            alarm,
        })
    }

    fn limit(&self, bytes: u64) -> io::Result<()> {
        let text = bytes.to_string();
        match (&self.swap, self.v2) {
            (Some(swap), true) => write_at(swap, "0")?,
            // Memory with swap must never be less than memory alone, on the way neither.
            (Some(swap), false) => write_at(swap, "-1")?,
            (None, _) => {}
        }
        write_once_free(&self.limit, &text)?;
        match (&self.swap, self.v2) {
            (Some(swap), false) => write_once_free(swap, &text),
            _ => Ok(()),
        }
    }
}

/// Sets a limit that is refused while more is in use. Shared memory of the attempt before goes with its namespaces, which
/// the kernel takes apart in its own time: a moment, and nothing tells of its end.
fn write_once_free(file: &File, text: &str) -> io::Result<()> {
    let until = Instant::now() + FREE_LIMIT;
    loop {
        match write_at(file, text) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(LOOK_EVERY);
            }
            done => return done,
        }
    }
}

impl Pids {
    fn open(folder: &Path) -> Option<Pids> {
        Some(Pids {
            max: write(&folder.join("pids.max"))?,
            events: read(&folder.join("pids.events"))?,
            peak: read(&folder.join("pids.peak")),
        })
    }
}

/// Makes a group if it is not there, and opens its list of processes.
fn make(folder: &Path) -> Option<File> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            tracing::warn!(group = %folder.display(), %error, "a control group cannot be made");
            return None;
        }
        _ => {}
    }
    write(&folder.join("cgroup.procs"))
}

fn write(path: &Path) -> Option<File> {
    OpenOptions::new().read(true).write(true).open(path).ok()
}

fn read(path: &Path) -> Option<File> {
    File::open(path).ok()
}

fn write_at(file: &File, text: &str) -> io::Result<()> {
    file.write_at(text.as_bytes(), 0).map(drop)
}

/// Reads one of the kernel's small files from its beginning.
fn text(file: &File) -> String {
    let mut bytes = [0; 1024];
    let length = file.read_at(&mut bytes, 0).unwrap_or_default();
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

fn number(file: &File) -> Option<u64> {
    text(file).trim().parse().ok()
}

/// The number behind a name in a file of names and numbers.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_whole_name() {
        let text = "low 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!((value(text, "oom_kill"), value(text, "max")), (Some(1), Some(3)));
        assert_eq!(value("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", "oom_kill"), Some(7));
        assert_eq!(value("", "max"), None);
    }

    #[test]
    fn an_attempt_pays_for_itself_alone() {
        let before = Counters {
            cpu_us: Some(1000),
            memory: 50,
            memory_peak: Some(50),
            oom_kills: 1,
            pids_peak: Some(4),
            pids_refused: 2,
        };
        let quiet = Counters { cpu_us: Some(1500), memory_peak: Some(80), ..before };
        let used = before.until(&quiet, 100);
        assert_eq!((used.cpu_us, used.memory_peak, used.pids_peak), (Some(500), Some(30), None));
        assert_eq!((used.out_of_memory, used.out_of_processes), (false, false));
        let bomb =
            Counters { memory_peak: Some(100), oom_kills: 2, pids_peak: Some(9), pids_refused: 3, ..quiet };
        let used = before.until(&bomb, 100);
        assert_eq!((used.memory_peak, used.pids_peak), (Some(100), Some(9 - OWN_PROCESSES)));
        assert!(used.out_of_memory && used.out_of_processes);
        let again = Counters { oom_kills: 3, ..bomb };
        assert_eq!(bomb.until(&again, 100).memory_peak, Some(100));
    }

    #[test]
    fn without_groups_everything_is_absent_and_nothing_fails() {
        let mut group = Group::default();
        assert!(group.join().is_ok() && group.descriptors().is_empty());
        assert!(group.begin(&Limits::default()).is_ok());
        let wanted = Rates { cpu_percent: Some(50), ..Rates::default() };
        let rated = Group::default().with_rates(&wanted, false, Hold::Absent);
        assert_eq!(rated.layers().get(&Layer::CgroupCpuQuota), Some(&Hold::Absent));
        assert_eq!(rated.layers().get(&Layer::CgroupIo), None);
        assert!(!group.is_there() && group.layers().values().all(|hold| *hold == Hold::Absent));
    }
}

//! The sandbox alone: `sh -c true` through a launcher's slots, against the bare spawn and against `bwrap`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sally_agent::sandbox::{
    Event, Launcher, Limits, Outcome, PLAN_VERSION, Plan, Profile, Program, RunFolder, RunInputs,
    connect_within,
};

use super::process::{self, LIMIT, Running};
use super::{Fallible, floor};

/// Slots of a launcher here: one for each processor of a small machine, and so many again that are getting ready.
pub(crate) const SLOTS: u16 = 4;

/// How long a launcher may take to be there.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Which sandbox.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `strict`, every layer.
    Whole,
    /// The same without control groups.
    WithoutGroups,
}

/// A launcher, and folders for its runs that are used again as an agent does.
pub(crate) struct Boxes {
    launcher: Launcher,
    running: Running,
    dir: PathBuf,
    next: u16,
    /// How often a folder was made, or used again.
    made: [u32; SLOTS as usize],
}

impl Boxes {
    /// Starts a launcher of the optimised program in this folder.
    pub(crate) async fn start(dir: &Path, kind: Kind, uid_base: u32) -> Fallible<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::create_dir_all(dir)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
        let mut command = Command::new(process::programs()?.join("sally-agent"));
        command.arg("launcher").arg("--state").arg(dir).arg("--socket").arg(dir.join("socket"));
        command.arg("--box").arg(dir.join("box")).args(["--slots", &SLOTS.to_string(), "--stop-kills"]);
        command.args(["--uid-base", &uid_base.to_string()]);
        if kind == Kind::WithoutGroups {
            command.args(["--break", "cgroup"]);
        }
        let log = dir.join("launcher.log");
        let running = Running::start(&mut command, &log)?;
        let launcher = connect_within(&dir.join("socket"), START_LIMIT).await;
        let launcher = launcher.map_err(|error| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            format!("the launcher: {error}\n{said}")
        })?;
        Ok(Self { launcher, running, dir: dir.to_owned(), next: 0, made: [0; SLOTS as usize] })
    }

    /// One run in the next slot: from the plan to the exit record. Meanwhile the slots before make their next sandbox.
    pub(crate) async fn one(&mut self) -> Fallible<Duration> {
        let slot = self.next;
        self.next = (slot + 1) % SLOTS;
        self.in_slot(slot).await
    }

    /// One run in the first slot, which has its sandbox still to make if it has just run another.
    pub(crate) async fn again(&mut self) -> Fallible<Duration> {
        self.in_slot(0).await
    }

    async fn in_slot(&mut self, slot: u16) -> Fallible<Duration> {
        let made = self.made.get_mut(usize::from(slot)).ok_or("no such slot")?;
        *made += 1;
        let fresh = *made == 1;
        let (took, folder) = attempt(&self.launcher, &self.dir, slot, fresh).await?;
        folder.empty(&spare(&self.dir, slot), &[])?;
        Ok(took)
    }

    /// This many runs, two slots at work at any time.
    pub(crate) async fn many(&mut self, runs: usize) -> Fallible<Duration> {
        let begun = Instant::now();
        for _ in 0..runs / 2 {
            let slots = [self.next, (self.next + 1) % SLOTS];
            self.next = (self.next + 2) % SLOTS;
            let mut fresh = [false; 2];
            for (fresh, slot) in fresh.iter_mut().zip(slots) {
                let made = self.made.get_mut(usize::from(slot)).ok_or("no such slot")?;
                *made += 1;
                *fresh = *made == 1;
            }
            let (a, b) = tokio::join!(
                attempt(&self.launcher, &self.dir, slots[0], fresh[0]),
                attempt(&self.launcher, &self.dir, slots[1], fresh[1])
            );
            a?.1.empty(&spare(&self.dir, slots[0]), &[])?;
            b?.1.empty(&spare(&self.dir, slots[1]), &[])?;
        }
        Ok(begun.elapsed())
    }

    /// The processes.
    pub(crate) fn pids(&self) -> Vec<i32> {
        vec![self.running.pid()]
    }

    /// Memory of all that is idle below the launcher, for each slot, KiB: keeper, forker and the sandbox that waits.
    pub(crate) fn slot_pss_kib(&self) -> u64 {
        let own = self.running.pid();
        let below: Vec<i32> = process::tree(&[own]).into_iter().filter(|pid| *pid != own).collect();
        process::pss_of(&below) / u64::from(SLOTS)
    }

    /// Memory of one idle keeper, KiB: the direct children of the launcher are keepers.
    pub(crate) fn keeper_pss_kib(&self) -> u64 {
        let keepers = process::children(self.running.pid());
        process::pss_of(&keepers) / (keepers.len().max(1) as u64)
    }
}

fn spare(dir: &Path, slot: u16) -> PathBuf {
    dir.join(format!("spare-{slot}"))
}

/// From the plan to the exit record.
async fn attempt(launcher: &Launcher, dir: &Path, slot: u16, fresh: bool) -> Fallible<(Duration, RunFolder)> {
    let begun = Instant::now();
    let run = dir.join(format!("run-{slot}"));
    let inputs = RunInputs::default();
    let (folder, handover) = if fresh {
        RunFolder::create(&run, inputs)?
    } else {
        RunFolder::reuse(&spare(dir, slot), &run, inputs)?
    };
    let mut events = folder.events()?;
    let started = launcher.start(slot, &plan(), handover).await?;
    started.go.release();
    loop {
        match tokio::time::timeout(LIMIT, events.next()).await?? {
            Event::Exited => break,
            Event::KeeperGone => return Err("the keeper is gone".into()),
            Event::Started | Event::Output => {}
        }
    }
    let took = begun.elapsed();
    match folder.exit_record()? {
        Some(record) if record.outcome == (Outcome::Exited { code: 0 }) => Ok((took, folder)),
        other => Err(format!("the sandboxed shell ended otherwise: {other:?}").into()),
    }
}

fn plan() -> Plan {
    Plan {
        v: PLAN_VERSION,
        run: "bench".into(),
        attempt: 1,
        profile: Profile::Strict,
        defined: None,
        user: None,
        program: Program::Command,
        argv: ["sh", "-c", "true"].map(String::from).to_vec(),
        env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
        timeout_ms: 60_000,
        grace_ms: 5_000,
        exit_grace_ms: 250,
        limits: Limits::default(),
        keep_bytes: 0,
        require: vec![],
        destinations: None,
        terminal: false,
    }
}

/// The same shell with the same three pipes by `bwrap --unshare-all`, with as much of a system as it needs.
pub(crate) async fn bwrap() -> Fallible<()> {
    const WORDS: [&str; 25] = [
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        "/usr",
        "/usr",
        "--symlink",
        "usr/bin",
        "/bin",
        "--symlink",
        "usr/lib",
        "/lib",
        "--symlink",
        "usr/lib64",
        "/lib64",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--chdir",
        "/tmp",
        "/bin/sh",
        "-c",
        "true",
    ];
    let mut command = tokio::process::Command::new("bwrap");
    command.args(WORDS);
    floor::spawn(command).await
}

/// Whether `bwrap` is here and works.
pub(crate) async fn has_bwrap() -> bool {
    bwrap().await.is_ok()
}

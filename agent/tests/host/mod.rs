//! A launcher as the tests of the sandbox start it, in each mode that this user can try, and what they ask of it.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod attacker;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sally_agent::sandbox::{
    Event, Events, ExitRecord, Go, Launcher, Limits, Mode, Outcome, PLAN_VERSION, Plan, Profile, Program,
    RunFolder, RunInputs, SandboxError, Script, Started, connect_within,
};
use std::fs;
use std::future::Future;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The account of the launcher that is an ordinary user.
pub(crate) const NOBODY: u32 = 65534;

/// No wait of these tests is longer; all end much sooner unless something is broken.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Where control groups are a unit's (version 2), this variable names a program that puts each launcher into a group of
/// its own: it is called with the launcher's uid and the command, and becomes that command.
const UNIT: &str = "SALLY_TEST_UNIT";

/// Whether each launcher has a unit of its own.
pub(crate) fn in_units() -> bool {
    std::env::var_os(UNIT).is_some_and(|unit| !unit.is_empty())
}

/// A launcher with its folders. Dropped, it is ended with everything below it.
pub(crate) struct Host {
    pub(crate) mode: Mode,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) child: Child,
    pub(crate) launcher: Launcher,
    pub(crate) uid_base: u32,
    pub(crate) runs: AtomicU32,
}

impl Host {
    pub(crate) async fn start(mode: Mode, args: &[&str]) -> Host {
        Host::start_by(mode, args, |_| Vec::new()).await
    }

    /// Starts the launcher by another program, which is given all that starts it as its last arguments. It is made for a
    /// folder that is there.
    pub(crate) async fn start_by(mode: Mode, args: &[&str], by: impl FnOnce(&Path) -> Vec<String>) -> Host {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let uid_base = 300_000 + std::process::id() % 10_000 * 100 + NEXT.fetch_add(1, Ordering::Relaxed) * 4;
        if mode == Mode::User && nix::unistd::geteuid().is_root() {
            chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let child = spawn_by(&by(dir.path()), mode, &state, uid_base, args);
        let launcher = connect_within(&state.join("socket"), LIMIT).await.unwrap();
        Host { mode, dir, child, launcher, uid_base, runs: AtomicU32::new(0) }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The kernel uid of a script in a slot.
    pub(crate) fn uid(&self, slot: u16) -> u32 {
        match self.mode {
            Mode::Root => self.uid_base + u32::from(slot),
            Mode::User if nix::unistd::geteuid().is_root() => NOBODY,
            Mode::User => nix::unistd::geteuid().as_raw(),
        }
    }

    /// Gives a plan to a slot without letting it start.
    pub(crate) async fn begin(
        &self,
        slot: u16,
        plan: &Plan,
        inputs: RunInputs,
    ) -> Result<Running, SandboxError> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.path().join(format!("run-{number}"));
        let (folder, handover) = RunFolder::create(&dir, inputs).unwrap();
        let events = folder.events().unwrap();
        let Started { go, keeper_pid, init_pid, .. } = self.launcher.start(slot, plan, handover).await?;
        Ok(Running { folder, events, go: Some(go), keeper: keeper_pid, init: init_pid })
    }

    /// Runs shell text in slot 0 to its end.
    pub(crate) async fn sh(&self, text: &str) -> Ended {
        self.run(&plan(text), RunInputs::default()).await
    }

    pub(crate) async fn run(&self, plan: &Plan, inputs: RunInputs) -> Ended {
        let mut running = self.begin(0, plan, inputs).await.unwrap();
        running.release();
        running.end().await
    }

    pub(crate) async fn script(&self, text: &str, change: impl FnOnce(&mut Plan)) -> Ended {
        let mut plan = plan("");
        plan.program = Program::Script { interpreter: None };
        plan.argv.clear();
        change(&mut plan);
        let script = Some(Script::Bytes(text.as_bytes().to_vec()));
        self.run(&plan, RunInputs { script, ..RunInputs::default() }).await
    }
}

pub(crate) fn spawn(mode: Mode, state: &Path, uid_base: u32, args: &[&str]) -> Child {
    spawn_by(&[], mode, state, uid_base, args)
}

fn spawn_by(by: &[String], mode: Mode, state: &Path, uid_base: u32, args: &[&str]) -> Child {
    let user = mode == Mode::User && nix::unistd::geteuid().is_root();
    let uid = if user { NOBODY } else { nix::unistd::geteuid().as_raw() }.to_string();
    let mut words: Vec<String> = by.to_vec();
    let unit = std::env::var(UNIT).unwrap_or_default();
    if !unit.is_empty() {
        words.extend([unit, uid.clone()]);
    }
    if user {
        words.extend(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"].map(String::from));
    }
    words.push(env!("CARGO_BIN_EXE_sally-agent").to_owned());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    let (socket, host_box, base) = (state.join("socket"), state.join("box"), uid_base.to_string());
    command.arg("launcher").arg("--state").arg(state).arg("--socket").arg(socket).arg("--box").arg(host_box);
    command.args(["--slots", "2", "--uid-base", &base, "--stop-kills"]).args(args);
    command.stdin(Stdio::null()).spawn().unwrap()
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// An attempt that goes on.
pub(crate) struct Running {
    pub(crate) folder: RunFolder,
    pub(crate) events: Events,
    pub(crate) go: Option<Go>,
    pub(crate) keeper: i32,
    pub(crate) init: i32,
}

impl Running {
    pub(crate) fn release(&mut self) {
        self.go.take().unwrap().release();
    }

    pub(crate) async fn event(&mut self) -> Event {
        tokio::time::timeout(LIMIT, self.events.next()).await.expect("an event in time").unwrap()
    }

    pub(crate) async fn until(&mut self, wanted: Event) {
        loop {
            match self.event().await {
                event if event == wanted => return,
                event @ (Event::Exited | Event::KeeperGone) => {
                    panic!("{event:?} before {wanted:?}: {:?}", self.folder.exit_record())
                }
                Event::Started | Event::Output => {}
            }
        }
    }

    pub(crate) async fn end(mut self) -> Ended {
        loop {
            match self.event().await {
                Event::Exited => return Ended::read(&self.folder),
                Event::KeeperGone => panic!("the keeper is gone"),
                Event::Started | Event::Output => {}
            }
        }
    }

    /// Waits until a file of the run folder has this text in it.
    pub(crate) async fn said(&mut self, text: &str) {
        while !fs::read_to_string(self.folder.stdout_path()).unwrap().contains(text) {
            self.until(Event::Output).await;
        }
    }

    /// The host's pid of the script: the first child of init.
    pub(crate) fn script_pid(&self) -> i32 {
        children(self.init)[0]
    }
}

/// An attempt at its end.
pub(crate) struct Ended {
    pub(crate) record: ExitRecord,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) result: Vec<u8>,
    pub(crate) result_file: Vec<u8>,
}

impl Ended {
    pub(crate) fn read(folder: &RunFolder) -> Ended {
        let text = |path: PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        Ended {
            record: folder.exit_record().unwrap().unwrap(),
            stdout: text(folder.stdout_path()),
            stderr: text(folder.stderr_path()),
            result: fs::read(folder.result_path()).unwrap(),
            result_file: fs::read(folder.result_file_path()).unwrap(),
        }
    }

    /// The script ended with 0; what it printed.
    pub(crate) fn ok(&self) -> &str {
        let outcome = &self.record.outcome;
        assert_eq!(
            *outcome,
            Outcome::Exited { code: 0 },
            "stdout {:?}, stderr {:?}",
            self.stdout,
            self.stderr
        );
        &self.stdout
    }
}

pub(crate) fn plan(shell: &str) -> Plan {
    Plan {
        v: PLAN_VERSION,
        run: "test".into(),
        attempt: 1,
        profile: Profile::Strict,
        defined: None,
        user: None,
        program: Program::Command,
        argv: ["sh", "-c", shell].map(String::from).to_vec(),
        env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
        timeout_ms: 15_000,
        grace_ms: 5_000,
        exit_grace_ms: 250,
        limits: Limits::default(),
        keep_bytes: 0,
        require: vec![],
        destinations: None,
        terminal: false,
    }
}

pub(crate) fn profile(profile: Profile, shell: &str) -> Plan {
    Plan { profile, ..plan(shell) }
}

/// Runs a test in each mode this user can try, each with a launcher of its own.
pub(crate) fn in_both<F: Future<Output = ()>>(test: impl Fn(Mode) -> F) {
    let mut modes = vec![Mode::User];
    if nix::unistd::geteuid().is_root() {
        modes.push(Mode::Root);
    } else {
        skipped_aloud();
    }
    for mode in modes {
        block_on(test(mode));
    }
}

#[expect(clippy::print_stderr, reason = "a test that is not run must be seen")]
pub(crate) fn skipped_aloud() {
    eprintln!("not root: the mode with a uid for each slot is not tried");
}

pub(crate) fn block_on<F: Future<Output = ()>>(test: F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// A process and all below it.
pub(crate) fn tree(root: i32) -> Vec<i32> {
    let mut all = vec![root];
    let mut at = 0;
    while at < all.len() {
        all.extend(children(all[at]));
        at += 1;
    }
    all
}

pub(crate) fn children(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Waits, without guessing a time, until something is true.
pub(crate) async fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !test() {
        assert!(Instant::now() < until, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The group of a process in the hierarchy that has a controller; `None` if no hierarchy has it by name.
pub(crate) fn group_of(pid: i32, controller: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let has = |list: &str| list.is_empty() || list.split(',').any(|name| name == controller);
    let lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let mut found: Vec<_> = lines.filter(|(list, _)| has(list)).collect();
    // The line without a name is version 2, which has what no other line has.
    found.sort_by_key(|(list, _)| list.is_empty());
    found.first().map(|(_, path)| (*path).to_owned())
}

/// Says that a part of a test is not tried here, and why.
#[expect(clippy::print_stderr, reason = "a test that is not run must be seen")]
pub(crate) fn skipped_aloud_because(mode: Mode, why: &str) {
    eprintln!("mode {mode:?}: {why}");
}

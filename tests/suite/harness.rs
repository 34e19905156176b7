//! Starts the real programs and ends them, by pid. One `up` per test, in a folder and on ports of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before a test gives up. Generous: machines are noisy, and no test measures time.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The folder of the programs under test: the suite stands in its `deps`.
pub fn programs() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let dir = own.parent().unwrap().parent().unwrap().to_owned();
    for name in ["sally", "sally-agent"] {
        assert!(dir.join(name).is_file(), "{name} is not built: run `make test`, or `cargo build` first");
    }
    dir
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The broker under test: what `SALLY_NATS_SERVER` names, else what `make nats-server` got.
pub fn nats_server() -> PathBuf {
    let own = || repository().join("build/nats-server/nats-server");
    std::env::var_os("SALLY_NATS_SERVER").map_or_else(own, PathBuf::from)
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Said {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("no JSON ({e}): {}\n{}", self.text(), self.stderr))
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.text(), self.stderr);
        self
    }
}

/// Runs a program to its end, bounded by [`LIMIT`].
pub fn run(command: &mut Command) -> Said {
    run_with_input(command, b"")
}

/// The same with something on standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Said {
    use std::io::Write;
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let status = wait_for_exit(&mut child);
    feeder.join().unwrap();
    Said { code: status.unwrap_or(-1), stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

fn wait_for_exit(child: &mut Child) -> Option<i32> {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("a program did not end within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Checks a condition often until it holds, for at most [`LIMIT`].
#[track_caller]
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < until, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A running `sally up`.
pub struct Up {
    dir: tempfile::TempDir,
    child: Child,
}

impl Up {
    /// Starts one with this many agents and waits until it is ready.
    pub fn start(agents: u32) -> Up {
        Up::start_with(agents, &[])
    }

    /// The same with more arguments.
    pub fn start_with(agents: u32, more: &[&str]) -> Up {
        let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
        // Slots run under user ids of their own and must reach the way to nothing here.
        Up::start_in(dir, agents, more)
    }

    /// Starts one on a folder that may hold an earlier one's state.
    pub fn start_in(dir: tempfile::TempDir, agents: u32, more: &[&str]) -> Up {
        Up::start_changed(dir, agents, more, |_| ())
    }

    /// The same with a command that was changed, by a variable for example.
    pub fn start_changed(
        dir: tempfile::TempDir,
        agents: u32,
        more: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Up {
        Up::start_program(&programs().join("sally"), dir, agents, more, change)
    }

    /// The same with a `sally` that has another `sally-agent` beside it.
    pub fn start_program(
        program: &Path,
        dir: tempfile::TempDir,
        agents: u32,
        more: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Up {
        let log = std::fs::File::create(dir.path().join("up.stderr")).unwrap();
        let mut command = Command::new(program);
        command
            .args(["up", "--dir"])
            .arg(dir.path().join("up"))
            .args(["--agents", &agents.to_string()])
            .args(more)
            .env("XDG_STATE_HOME", dir.path().join("state"))
            .env("XDG_CONFIG_HOME", dir.path().join("config"))
            .env("XDG_DATA_HOME", dir.path().join("data"))
            // Cargo may build elsewhere, where the program does not find the project's copy.
            .env("SALLY_NATS_SERVER", nats_server())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let stderr = || std::fs::read_to_string(dir.path().join("up.stderr")).unwrap();
        assert_eq!(line, "ready\n", "up is not ready: {}", stderr());
        Up { dir, child }
    }

    /// The folder given as `--dir`.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("up")
    }

    /// A folder for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The process id of `sally up`.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// The process id in a pid file: `nats-server`, `serve`, `local-1`, `local-1.launcher`.
    pub fn pid_of(&self, name: &str) -> Option<i32> {
        let text = std::fs::read_to_string(self.dir().join("run").join(format!("{name}.pid"))).ok()?;
        text.split(|c: char| !c.is_ascii_digit()).find(|s| !s.is_empty())?.parse().ok()
    }

    /// `sally` in this context, ready for more arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(programs().join("sally"));
        command.env("SALLY_CONTEXT", self.dir().join("context.toml"));
        command.env_remove("NO_COLOR").current_dir(repository());
        command
    }

    /// Runs `sally` in this context.
    pub fn sally(&self, args: &[&str]) -> Said {
        run(self.command().args(args))
    }

    /// Runs `sally … -o json` in this context and reads what it says. The options go before `--`.
    #[track_caller]
    pub fn json(&self, args: &[&str], code: i32) -> Value {
        let mut with: Vec<&str> = args.to_vec();
        let at = with.iter().position(|a| *a == "--").unwrap_or(with.len());
        with.splice(at..at, ["-o", "json"]);
        self.sally(&with).expect(code).json()
    }

    /// Ends it as a person would and gives the folder back.
    pub fn stop(mut self) -> tempfile::TempDir {
        self.end();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// Waits for the end of one that was killed, and gives the folder back.
    pub fn killed(mut self) -> tempfile::TempDir {
        self.child.wait().unwrap();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// The same for one that was asked to end: it must do so in time.
    pub fn ended(mut self) -> tempfile::TempDir {
        assert_eq!(wait_for_exit(&mut self.child), Some(0), "how `up` ended");
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    fn end(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid());
        if self.child.try_wait().unwrap().is_none() {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            wait_for_exit(&mut self.child);
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return self.end();
        }
        eprintln!(
            "--- up: {}",
            std::fs::read_to_string(self.dir.path().join("up.stderr")).unwrap_or_default()
        );
        for entry in std::fs::read_dir(self.dir().join("log")).into_iter().flatten().flatten() {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            let tail = &text[text.len().saturating_sub(2000)..];
            eprintln!("--- {}: {}", entry.path().display(), String::from_utf8_lossy(tail));
        }
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

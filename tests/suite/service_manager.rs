//! What a service manager sees of the programs: readiness, status, watchdog, reload and the end; here the test is one.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{LIMIT, Up, eventually, programs};
use crate::outside::Own;

/// The other end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(dir: &Path, name: &str) -> Manager {
        let path = dir.join(name);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Manager { socket, path }
    }

    /// Starts a service that must feed a watchdog of a second.
    fn start(&self, command: &mut Command, log: &Path) -> Own {
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", "1000000").env_remove("WATCHDOG_PID");
        Own::start(command, log)
    }

    /// The next message: one variable a line.
    #[track_caller]
    fn message(&self) -> BTreeMap<String, String> {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).expect("the service says something in time");
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        text.lines().map(|l| l.split_once('=').unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    /// The next message that has this variable, and what was said before it.
    #[track_caller]
    fn until(&self, name: &str) -> BTreeMap<String, String> {
        for _ in 0..10_000 {
            let message = self.message();
            if message.contains_key(name) {
                return message;
            }
        }
        panic!("ten thousand messages and no {name}")
    }
}

fn log(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn an_agent_is_ready_feeds_its_watchdog_reloads_and_says_that_it_stops() {
    let up = Up::start_with(0, &["--prepare", "edge-1"]);
    let manager = Manager::new(up.scratch(), "agent.notify");
    let (path, log_path) = (up.dir().join("agents/edge-1/agent.toml"), up.scratch().join("edge-1.log"));
    let mut command = Command::new(programs().join("sally-agent"));
    let agent = manager.start(command.arg("run").arg("--config").arg(&path), &log_path);
    assert_eq!(manager.until("READY").get("STATUS").map(String::as_str), Some("waits for a controller"));
    eventually("the status says that work is taken", || {
        manager.until("STATUS")["STATUS"].starts_with("takes work; 0 of 4 slots busy").then_some(())
    });
    // Fed by a loop that has nothing else to do, and also when the last message was one of these.
    manager.until("WATCHDOG");
    manager.until("WATCHDOG");

    std::fs::create_dir(path.with_extension("toml.d")).unwrap();
    let drop_in = path.with_extension("toml.d").join("1.toml");
    std::fs::write(&drop_in, "slots = 9\n[labels]\nrole = \"db\"\n").unwrap();
    agent.signal(Signal::SIGHUP);
    let reloading = manager.until("RELOADING");
    assert!(reloading["MONOTONIC_USEC"].parse::<u64>().unwrap() > 0);
    manager.until("READY");
    eventually("the controller sees the label", || {
        let said = up.sally(&["agent", "show", "edge-1", "-o", "json"]).json();
        said.to_string().contains("\"role\":\"db\"").then_some(())
    });
    eventually("what cannot be reloaded is said", || {
        log(&log_path).contains("restart to have them: slots").then_some(())
    });

    std::fs::write(&drop_in, "slots = 0\n[labels]\nrole = \"web\"\n").unwrap();
    agent.signal(Signal::SIGHUP);
    let status = manager.until("READY")["STATUS"].clone();
    assert_eq!(status, "the configuration has problems and stays as it was");
    assert!(log(&log_path).contains("slots: 0 is not between 1 and 256"), "{}", log(&log_path));

    // The agent works on.
    up.sally(&["exec", "-a", "edge-1", "--wait", "50s", "--", "true"]).expect(0);
    agent.signal(Signal::SIGTERM);
    manager.until("STOPPING");
}

#[test]
fn a_loop_that_hangs_starves_the_watchdog() {
    let up = Up::start_with(0, &["--prepare", "edge-1"]);
    let manager = Manager::new(up.scratch(), "agent.notify");
    let path = up.dir().join("agents/edge-1/agent.toml");
    let mut command = Command::new(programs().join("sally-agent"));
    let command = command.arg("run").arg("--config").arg(&path);
    let agent = manager.start(command, &up.scratch().join("edge-1.log"));
    manager.until("WATCHDOG");
    agent.signal(Signal::SIGSTOP);
    manager.socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut bytes = [0; 4096];
    // What was on its way is read; then nothing comes for two limits.
    while manager.socket.recv(&mut bytes).is_ok() {}
    agent.signal(Signal::SIGCONT);
    manager.socket.set_read_timeout(Some(LIMIT)).unwrap();
    manager.until("WATCHDOG");
}

#[test]
fn a_launcher_is_ready_feeds_its_watchdog_and_survives_a_hangup() {
    let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
    let manager = Manager::new(dir.path(), "launcher.notify");
    let log_path = dir.path().join("launcher.log");
    let mut command = Command::new(programs().join("sally-agent"));
    command.arg("launcher").arg("--socket").arg(dir.path().join("s.sock"));
    command.arg("--state").arg(dir.path().join("state")).args(["--slots", "1", "--uid-base", "204000"]);
    let launcher = manager.start(&mut command, &log_path);
    assert_eq!(manager.until("READY")["STATUS"], "1 slots, profiles up to host");
    manager.until("WATCHDOG");
    manager.until("WATCHDOG");
    launcher.signal(Signal::SIGHUP);
    manager.until("RELOADING");
    manager.until("READY");
    assert!(log(&log_path).contains("a launcher reads no configuration"), "{}", log(&log_path));
    launcher.signal(Signal::SIGTERM);
    manager.until("STOPPING");
}

#[test]
fn the_service_takes_agents_that_were_enrolled_meanwhile() {
    let up = Up::start_with(0, &["--prepare", "edge-1"]);
    let list = up.dir().join("agents.json");
    let agents = std::fs::read_to_string(&list).unwrap();
    let service = nix::unistd::Pid::from_raw(up.pid_of("serve").unwrap());
    let count = || up.json(&["agent", "ls"], 0)["agents"].as_array().unwrap().len();
    assert_eq!(count(), 1);
    let added = agents
        .replace("]", &format!(", {}]", agents.trim().trim_matches(['[', ']']).replace("edge-1", "edge-2")));
    for (text, expected) in [(&added, 2), (&"[".to_owned(), 2), (&agents, 1)] {
        std::fs::write(&list, text).unwrap();
        nix::sys::signal::kill(service, Signal::SIGHUP).unwrap();
        eventually("the service has read the list, or said why not", || {
            let log = log(&up.dir().join("log/serve.log"));
            let said = if text.len() == 1 { log.contains("the settings stay as they were: ") } else { true };
            (said && count() == expected).then_some(())
        });
    }
}

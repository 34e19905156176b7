//! What a result says about its sandbox is what anyone sees who looks at the script from outside.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Up, eventually, programs};
use crate::outside::{self, Own, namespace, status};

/// Layer by name: `enforced`, `degraded` or `absent`.
type Holds = BTreeMap<String, String>;

/// A script that only waits, seen from outside.
struct Waiting {
    job: String,
    pid: i32,
}

/// Starts a script that waits until it is cancelled; the mark tells it from every other.
fn start_waiting(up: &Up, agent: &str, profile: &str, mark: &str) -> Waiting {
    let seconds = format!("86400.{}{mark}", std::process::id());
    let args = ["exec", "-a", agent, "--profile", profile, "--detach", "-o", "json", "--", "sleep", &seconds];
    let job = up.sally(&args).expect(0).json()["job"]["id"].as_str().unwrap().to_owned();
    let pid = eventually("the script waits", || {
        outside::with_command(&["sleep", &seconds]).filter(|pid| is_asleep(*pid))
    });
    Waiting { job, pid }
}

/// Whether a `sleep` sleeps. Before that its loader has files open that the sandbox did not give it.
fn is_asleep(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/syscall")) {
        // nanosleep and clock_nanosleep, on x86_64 and on aarch64.
        Ok(call) => ["35 ", "230 ", "101 ", "115 "].iter().any(|number| call.starts_with(number)),
        // Only who may trace a process may read this.
        Err(_) => status(pid)["State"].starts_with('S'),
    }
}

/// Cancels it and returns the run as it was recorded.
fn end_waiting(up: &Up, waiting: &Waiting) -> Value {
    up.sally(&["job", "cancel", &waiting.job]).expect(0);
    let record = up.json(&["job", "wait", &waiting.job], 9);
    assert_eq!(record["runs"][0]["state"], "cancelled");
    record["runs"][0].clone()
}

fn reported(run: &Value) -> Holds {
    let layers = run["sandbox"]["layers"].as_object().unwrap();
    layers.iter().map(|(name, hold)| (name.clone(), hold.as_str().unwrap().to_owned())).collect()
}

/// The keeper above a script: the process whose parent is the launcher.
fn keeper_of(pid: i32, launcher: i32) -> i32 {
    let mut at = pid;
    loop {
        let above = outside::parent(at).unwrap();
        if above == launcher {
            return at;
        }
        assert!(above > 1, "process {pid} is not below launcher {launcher}");
        at = above;
    }
}

/// Judges landlock, which leaves no trace outside a process, by its effect: init has the script's uid and pid
/// namespace, and only landlock's scope (Linux 6.12) keeps a signal from it.
fn landlock(up: &Up, agent: &str, profile: &str) -> String {
    let try_init = "kill -0 1 && exit 41; exit 42";
    let args = ["exec", "-a", agent, "--profile", profile, "-o", "json", "--", "sh", "-c", try_init];
    let record = up.sally(&args).expect(3).json();
    let code = record["runs"][0]["exit_code"].as_i64();
    assert!(code == Some(41) || code == Some(42), "{record}");
    if code == Some(42) { "enforced".into() } else { "absent".into() }
}

/// Judges every layer of a script that can be seen from outside.
fn seen(pid: i32, launcher: i32, agent: i32, profile: &str) -> Holds {
    let status_of = status(pid);
    let yes = |holds: bool| if holds { "enforced" } else { "absent" };
    let own = |kind: &str| {
        let its = namespace(pid, kind);
        its != namespace(launcher, kind) && its != namespace(agent, kind)
    };
    let mut holds: BTreeMap<&str, &str> = [("user", "user"), ("net", "net"), ("ipc", "ipc"), ("uts", "uts")]
        .map(|(l, k)| (l, yes(own(k))))
        .into();
    holds.insert(
        "mount",
        match namespace(pid, "mnt") == namespace(keeper_of(pid, launcher), "mnt") {
            true if own("mnt") => "degraded",
            _ => yes(own("mnt")),
        },
    );
    // In its own `/proc` nobody has the number that this process has on the host.
    let sees_host = fs::read_to_string(format!("/proc/{pid}/root/proc/{launcher}/comm"))
        .is_ok_and(|name| name == fs::read_to_string(format!("/proc/{launcher}/comm")).unwrap());
    holds.insert(
        "pid",
        if own("pid") && sees_host && profile != "host" { "degraded" } else { yes(own("pid")) },
    );
    holds.insert("root", root(pid));
    let uids: Vec<u32> = status_of["Uid"].split_whitespace().map(|n| n.parse().unwrap()).collect();
    let others = [status(agent)["Uid"].clone(), status(launcher)["Uid"].clone()];
    let differs = !others.iter().any(|o| o.split_whitespace().any(|n| n == uids[0].to_string()));
    holds.insert("uid", yes(uids.iter().all(|n| *n == uids[0] && *n != 0) && differs));
    holds.insert("no_new_privs", yes(status_of["NoNewPrivs"] == "1"));
    let none = |set: &&str| status_of[*set].bytes().all(|b| b == b'0');
    holds.insert("capabilities", yes(["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].iter().all(none)));
    holds.insert("rlimits", yes(limits_hold(pid)));
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut open: Vec<String> = open.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    open.sort();
    holds.insert("closed_descriptors", yes(open == ["0", "1", "2", "3"]));
    holds.insert("environment", yes(environment_is_clean(pid)));
    holds.insert("seccomp", yes(status_of["Seccomp"] != "0"));
    let group = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    holds.insert("cgroup", yes(group(pid) != group(launcher)));
    holds.into_iter().map(|(layer, hold)| (layer.to_owned(), hold.to_owned())).collect()
}

fn root(pid: i32) -> &'static str {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    // The last mount on a point is the one that is seen; what is no mount point belongs to the root.
    let options = |point: &str| {
        let mut lines = mounts.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
        lines.rfind(|l| l[4] == point).map(|l| l[5].split(',').any(|o| o == "ro"))
    };
    let read_only = options("/") == Some(true) && options("/usr") != Some(false);
    let private =
        fs::metadata(format!("/proc/{pid}/root/")).unwrap().dev() != fs::metadata("/").unwrap().dev();
    match (read_only, private) {
        (true, true) => "enforced",
        (true, false) => "degraded",
        (false, _) => "absent",
    }
}

/// The limits that every plan of an agent has, as the kernel holds them.
fn limits_hold(pid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let most = [
        ("Max core file size", 0),
        ("Max msgqueue size", 0),
        ("Max locked memory", 64 << 10),
        ("Max open files", 1024),
        ("Max processes", 258),
        ("Max file size", 256 << 20),
    ];
    most.iter().all(|(name, most)| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        // Soft and hard; `unlimited` is no number.
        line.split_whitespace().take(2).all(|n| n.parse::<u64>().is_ok_and(|n| n <= *most))
    })
}

/// What `docs/scripts.md` promises a script, and nothing else.
fn environment_is_clean(pid: i32) -> bool {
    let promised = [
        "HOME",
        "LANG",
        "PATH",
        "SALLY_AGENT",
        "SALLY_ATTEMPT",
        "SALLY_DEADLINE",
        "SALLY_JOB",
        "SALLY_PARAMS_FILE",
        "SALLY_RESULT_FD",
        "SALLY_RESULT_FILE",
        "SALLY_RUN",
        "SALLY_SECRETS_DIR",
        "SALLY_ZONE",
        "TMPDIR",
        "TZ",
    ];
    outside::environment(pid).into_keys().eq(promised)
}

#[test]
fn every_layer_reported_is_what_is_seen_from_outside() {
    let up = Up::start(1);
    let (launcher, agent) = (up.pid_of("local-1.launcher").unwrap(), up.pid_of("local-1").unwrap());
    // What a clean environment is clean of.
    assert!(outside::environment(launcher).contains_key("XDG_STATE_HOME"));
    for profile in ["strict", "net", "host"] {
        let first = start_waiting(&up, "local-1", profile, "1");
        let second = start_waiting(&up, "local-1", profile, "2");
        let outside = seen(first.pid, launcher, agent, profile);
        let uid = status(first.pid)["Uid"].clone();
        if nix::unistd::geteuid().is_root() {
            assert_ne!(uid, status(second.pid)["Uid"], "{profile}: two slots share a uid");
        }
        for kind in ["user", "mnt", "pid", "ipc", "uts"] {
            let (a, b) = (namespace(first.pid, kind), namespace(second.pid, kind));
            assert_ne!(a, b, "{profile}: two runs share a {kind} namespace");
        }
        end_waiting(&up, &second);
        let run = end_waiting(&up, &first);
        assert_eq!(run["sandbox"]["profile"], profile);
        assert_eq!(run["sandbox"]["uid"].to_string(), uid.split_whitespace().next().unwrap());
        let inside = reported(&run);
        let mut outside = outside;
        outside.insert("landlock".into(), landlock(&up, "local-1", profile));
        assert_eq!(inside, outside, "{profile}: reported, and seen from outside");
        assert_eq!(inside["net"] == "enforced", profile == "strict");
        assert_eq!(inside["root"] == "degraded", profile == "host");
    }
}

/// An agent started by hand, with a launcher that leaves one layer out.
struct Broken {
    agent: Own,
    launcher: Own,
}

impl Broken {
    fn start(up: &Up, layer: Option<&str>) -> Broken {
        let name = layer.unwrap_or("none");
        let dir = up.dir().join("agents/edge-1");
        let socket = up.scratch().join(format!("{name}.sock"));
        let mut command = Command::new(programs().join("sally-agent"));
        command.arg("launcher").arg("--socket").arg(&socket).args(["--slots", "1", "--stop-kills"]);
        command.arg("--state").arg(up.scratch().join(format!("{name}.launcher")));
        command.args(["--uid-base", "260000"]);
        if let Some(layer) = layer {
            command.args(["--break", layer]);
        }
        let launcher = Own::start(&mut command, &up.scratch().join(format!("{name}.launcher.log")));
        let mut config: toml::Table =
            toml::from_str(&fs::read_to_string(dir.join("agent.toml")).unwrap()).unwrap();
        config.insert("launcher_socket".into(), socket.to_str().unwrap().into());
        // An agent of its own each time: nothing is owed to or by the one before.
        config.insert("state_dir".into(), format!("state.{name}").into());
        let path = dir.join(format!("{name}.toml"));
        fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
        let mut command = Command::new(programs().join("sally-agent"));
        let agent = Own::start(
            command.arg("run").arg("--config").arg(path),
            &up.scratch().join(format!("{name}.agent.log")),
        );
        Broken { agent, launcher }
    }
}

#[test]
fn a_layer_broken_on_purpose_changes_the_report_for_exactly_that_layer() {
    let up = Up::start_with(0, &["--prepare", "edge-1"]);
    let look = |layer: Option<&str>| {
        let broken = Broken::start(&up, layer);
        let waiting = start_waiting(&up, "edge-1", "strict", "3");
        let outside = seen(waiting.pid, broken.launcher.pid(), broken.agent.pid(), "strict");
        let inside = reported(&end_waiting(&up, &waiting));
        let mut outside = outside;
        if layer != Some("pid") {
            outside.insert("landlock".into(), landlock(&up, "edge-1", "strict"));
        } else {
            // There number 1 is the host's init, which a script does not reach anyway.
            outside.insert("landlock".into(), inside["landlock"].clone());
        }
        assert_eq!(inside, outside, "with {layer:?} broken: reported, and seen from outside");
        broken.agent.stop();
        broken.launcher.stop();
        inside
    };
    let whole = look(None);
    for layer in [
        "user",
        "mount",
        "pid",
        "net",
        "ipc",
        "uts",
        "root",
        "no_new_privs",
        "capabilities",
        "rlimits",
        "closed_descriptors",
        "environment",
        "seccomp",
        "landlock",
    ] {
        let mut expected = whole.clone();
        assert_eq!(expected[layer], "enforced");
        let hold = if ["mount", "root"].contains(&layer) { "degraded" } else { "absent" };
        expected.insert(layer.to_owned(), hold.to_owned());
        if layer == "user" {
            // A slot's uid is given to it by its user namespace: without the one there is not the other.
            expected.insert("uid".to_owned(), "absent".to_owned());
        }
        assert_eq!(look(Some(layer)), expected, "with {layer} broken");
    }
}

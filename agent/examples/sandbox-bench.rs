//! What the sandbox costs beside a bare spawn with three pipes, interleaved in one run, and what it keeps
//! in memory. `cargo build --release -p sally-agent --example sandbox-bench --bin sally-agent`, then start
//! it with the path of `sally-agent`.
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a measurement for people")]

use sally_agent::sandbox::{
    Event, Launcher, Limits, Outcome, PLAN_VERSION, Plan, Profile, Program, RunFolder, RunInputs,
    connect_within, spawn_launcher,
};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 300;

fn main() {
    let program = PathBuf::from(std::env::args_os().nth(1).expect("the path of sally-agent"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure(&program));
}

async fn measure(program: &Path) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let state = dir.path().join("state");
    let socket = dir.path().join("socket");
    let (state, path) = (state.to_str().unwrap(), socket.to_str().unwrap());
    let args = ["--state", state, "--socket", path, "--slots", "4", "--uid-base", "390000"];
    // More arguments are the launcher's: `--break cgroup` shows what a layer costs.
    let more: Vec<String> = std::env::args().skip(2).collect();
    let args: Vec<&str> = args.into_iter().chain(more.iter().map(String::as_str)).collect();
    let mut child = spawn_launcher(Some(program), &args).unwrap();
    let launcher = connect_within(&socket, Duration::from_secs(5)).await.unwrap();
    for argv in [&["true"][..], &["sh", "-c", "true"]] {
        for profile in Profile::ALL {
            latency(&launcher, dir.path(), argv, profile).await;
        }
    }
    throughput(&launcher, dir.path()).await;
    let processes = tree(child.id());
    let pss: u64 = processes.iter().map(|pid| pss_kib(*pid)).sum();
    println!("idle: launcher and 4 slots, {} processes, {pss} KiB PSS", processes.len());
    for pid in processes {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        println!("  {:14} {:5} KiB", comm.trim(), pss_kib(pid));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM).unwrap();
    child.wait().unwrap();
}

async fn latency(launcher: &Launcher, dir: &Path, argv: &[&str], profile: Profile) {
    let plan = plan(argv, profile);
    let (mut bare, mut boxed, mut parts) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    for round in 0..ROUNDS + 20 {
        let begun = Instant::now();
        spawn_bare(argv);
        let bare_took = begun.elapsed();
        let folder = dir.join(format!("run-{profile}-{}-{round}", argv.len()));
        let begun = Instant::now();
        let marks = run(launcher, &folder, &plan).await;
        let boxed_took = begun.elapsed();
        fs::remove_dir_all(&folder).unwrap();
        if round >= 20 {
            bare.push(bare_took);
            boxed.push(boxed_took);
            for (part, mark) in parts.iter_mut().zip(marks) {
                part.push(mark.duration_since(begun));
            }
        }
    }
    let (bare, boxed) = (p50(&mut bare), p50(&mut boxed));
    let [folder, accepted, started] = parts.map(|mut part| p50(&mut part));
    let ratio = boxed.as_secs_f64() / bare.as_secs_f64();
    println!(
        "{:14} {profile:6} bare {bare:>9.1?}  sandbox {boxed:>9.1?}  x{ratio:.2}  (folder at {folder:.0?}, accepted at {accepted:.0?}, started at {started:.0?})",
        argv.join(" ")
    );
}

/// Returns when the folder was there, the plan accepted, and the script started.
async fn run(launcher: &Launcher, dir: &Path, plan: &Plan) -> [Instant; 3] {
    let (folder, handover) = RunFolder::create(dir, RunInputs::default()).unwrap();
    let mut events = folder.events().unwrap();
    let created = Instant::now();
    let started = launcher.start(0, plan, handover).await.unwrap();
    let accepted = Instant::now();
    started.go.release();
    let mut executed = None;
    loop {
        match events.next().await.unwrap() {
            Event::Started => executed = Some(Instant::now()),
            Event::Output => {}
            Event::Exited => break,
            Event::KeeperGone => panic!("the keeper is gone"),
        }
    }
    let record = folder.exit_record().unwrap().unwrap();
    assert_eq!(record.outcome, Outcome::Exited { code: 0 });
    [created, accepted, executed.unwrap_or_else(Instant::now)]
}

async fn throughput(launcher: &Launcher, dir: &Path) {
    const BYTES: u64 = 2 << 30;
    let text = format!("head -c {BYTES} /dev/zero");
    let mut plan = plan(&["sh", "-c", &text], Profile::Strict);
    plan.limits.stdout_bytes = 256 << 20;
    let begun = Instant::now();
    run(launcher, &dir.join("big"), &plan).await;
    let took = begun.elapsed();
    println!("drained {:.0} MB/s (256 MiB kept)", BYTES as f64 / 1e6 / took.as_secs_f64());
    plan.limits.stdout_bytes = BYTES;
    plan.argv = ["head", "-c", "1000000000", "/dev/zero"].map(String::from).to_vec();
    let begun = Instant::now();
    run(launcher, &dir.join("kept"), &plan).await;
    println!("kept    {:.0} MB/s", 1000.0 / begun.elapsed().as_secs_f64());
}

fn spawn_bare(argv: &[&str]) {
    let mut child = Command::new(argv[0])
        .args(&argv[1..])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut bytes = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
    child.stderr.take().unwrap().read_to_end(&mut bytes).unwrap();
    assert!(child.wait().unwrap().success());
}

fn plan(argv: &[&str], profile: Profile) -> Plan {
    Plan {
        v: PLAN_VERSION,
        run: "bench".into(),
        attempt: 1,
        profile,
        defined: None,
        user: None,
        program: Program::Command,
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        timeout_ms: 60_000,
        grace_ms: 1000,
        exit_grace_ms: 250,
        limits: Limits::default(),
        keep_bytes: 0,
        require: vec![],
        destinations: None,
        terminal: false,
    }
}

fn p50(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn tree(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let mut at = 0;
    while at < all.len() {
        let pid = all[at];
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        all.extend(list.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        at += 1;
    }
    all
}

fn pss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")).map_or(0, |kib| kib.trim().parse().unwrap_or(0))
}

//! Profiles that an operator defines, `admin`, and accounts, by a real launcher, as root and as an ordinary user.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod host;

use host::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sally_agent::sandbox::{
    Event, Hold, Layer, Mode, Outcome, Plan, Profile, Program, RunInputs, SandboxError, Script,
};
use sally_common::name::ProfileName;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A launcher with definitions, and a folder of the host that they speak of.
struct Place {
    host: Host,
    outside: TempDir,
    _definitions: TempDir,
}

/// A folder that is not below `/tmp`, which is the sandbox's own.
fn outside() -> TempDir {
    let home = std::env::var("HOME").unwrap_or_default();
    let made = ["/srv", "/var/lib", &home]
        .iter()
        .find_map(|dir| tempfile::Builder::new().prefix("sally-test-").tempdir_in(dir).ok());
    let dir = made.expect("a folder that can be written outside of /tmp");
    open(dir.path(), 0o755);
    dir
}

fn open(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Starts a launcher whose definitions may say `OUT` for the folder.
async fn start(mode: Mode, definitions: &[(&str, &str)], args: &[&str]) -> Place {
    let (outside, dir) = (outside(), tempfile::tempdir().unwrap());
    for (name, mode) in [("shown", 0o755), ("shown/secret", 0o755), ("written", 0o777)] {
        fs::create_dir(outside.path().join(name)).unwrap();
        open(&outside.path().join(name), mode);
    }
    fs::write(outside.path().join("shown/file"), "content\n").unwrap();
    fs::write(outside.path().join("shown/secret/key"), "key\n").unwrap();
    let out = outside.path().display().to_string();
    for (name, text) in definitions {
        fs::write(dir.path().join(format!("{name}.toml")), text.replace("OUT", &out)).unwrap();
    }
    open(dir.path(), 0o755);
    let dir_text = dir.path().display().to_string();
    let host = Host::start(mode, &[&["--profiles-dir", &dir_text], args].concat()).await;
    Place { host, outside, _definitions: dir }
}

impl Place {
    /// A plan for a profile as an agent makes it from what the launcher says. `OUT` in the text is the folder.
    fn plan(&self, name: &str, text: &str) -> Plan {
        let shape = self.host.launcher.info().shape_of(&ProfileName::new(name).unwrap()).unwrap();
        let text = text.replace("OUT", &self.outside.path().display().to_string());
        Plan { profile: shape.profile, defined: shape.defined, ..plan(&text) }
    }

    async fn sh(&self, name: &str, text: &str) -> Ended {
        self.host.run(&self.plan(name, text), RunInputs::default()).await
    }
}

fn refused(result: Result<Running, SandboxError>, words: &str) {
    match result {
        Err(SandboxError::Refused(message)) => assert!(message.contains(words), "{message}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted, not refused: {words}"),
    }
}

#[test]
fn paths_are_shown_written_and_hidden_and_nothing_else_changes() {
    const FILES: &str = "base = \"strict\"\n[files]\nread = [\"OUT/shown\"]\nwrite = [\"OUT/written\"]\n\
                         hide = [\"OUT/shown/secret\", \"/usr/share\"]\n";
    in_both(async |mode| {
        let place = start(mode, &[("files", FILES)], &[]).await;
        assert_eq!(
            place
                .sh("strict", "ls OUT 2>&1 | grep -c 'No such'; ls /usr/share | wc -l")
                .await
                .ok()
                .lines()
                .next(),
            Some("1")
        );
        let ended = place
            .sh(
                "files",
                "cat OUT/shown/file; ls -A OUT/shown/secret /usr/share | grep -v : | tr -d '\\n'; \
                 echo x 2>/dev/null >OUT/shown/new || echo closed; \
                 echo x 2>/dev/null >OUT/shown/secret/new || echo closed; \
                 mkdir OUT/new 2>/dev/null || echo closed; echo there >OUT/written/new; cat OUT/written/new; \
                 mkdir OUT/written/folder && mv OUT/written/new OUT/written/folder/ && ls OUT",
            )
            .await;
        assert_eq!(ended.ok(), "content\nclosed\nclosed\nclosed\nthere\nshown\nwritten\n");
        let written = place.outside.path().join("written/folder/new");
        assert_eq!(fs::read_to_string(&written).unwrap(), "there\n");
        assert_eq!(fs::metadata(&written).unwrap().uid(), place.host.uid(0), "the uid that the result names");
        let record = &ended.record;
        assert_eq!(
            (record.profile, record.defined.as_ref().map(ProfileName::as_str)),
            (Profile::Strict, Some("files"))
        );
        let strict = place.sh("strict", "true").await;
        assert_eq!(record.layers, strict.record.layers, "every layer is what it is in strict");
        assert_eq!(strict.record.defined, None);
        let gone = place.sh("strict", "ls OUT/written").await;
        assert_eq!(gone.record.outcome, Outcome::Exited { code: 2 }, "{}", gone.stdout);
    });
}

#[test]
fn what_host_shows_can_be_hidden_but_for_a_part() {
    const TEXT: &str = "base = \"host\"\n[files]\nhide = [\"OUT\"]\nread = [\"OUT/shown/file\"]\nwrite = [\"OUT/written\"]\n";
    in_both(async |mode| {
        let place = start(mode, &[("inspect", TEXT)], &[]).await;
        let list = "cd OUT && find . | sort; cat shown/file; echo 1 2>/dev/null >shown/file || echo closed; echo 2 >written/x; \
                    cat written/x; touch /usr/x 2>/dev/null || echo closed; test -e /etc/hostname -o -e /etc/passwd && echo host";
        let ended = place.sh("inspect", list).await;
        assert_eq!(ended.ok(), ".\n./shown\n./shown/file\n./written\ncontent\nclosed\n2\nclosed\nhost\n");
        let host = place.sh("host", "ls OUT/shown; echo 2>/dev/null >OUT/written/y || echo closed").await;
        assert_eq!(host.ok(), "file\nsecret\nclosed\n");
    });
}

#[test]
fn a_device_is_there_only_where_it_is_given() {
    in_both(async |mode| {
        let given = ["strict", "host"].map(|base| format!("base = \"{base}\"\ndevices = [\"/dev/tty\"]\n"));
        let place = start(mode, &[("a", &given[0]), ("b", &given[1])], &[]).await;
        // Nobody has a terminal here: one that is there says so, one that is not is not there or closed.
        let open = "(: </dev/tty) 2>&1 | sed 's/.*: //'; :";
        for name in ["a", "b"] {
            assert_eq!(place.sh(name, open).await.ok(), "No such device or address\n", "{name}");
        }
        let without = place.sh("strict", open).await;
        assert!(!without.ok().contains("device or address"), "{}", without.stdout);
        let host = place.sh("host", open).await;
        assert!(!host.ok().contains("device or address"), "{}", host.stdout);
    });
}

#[test]
fn a_system_call_is_allowed_or_refused_by_name() {
    const CALLS: &str =
        "base = \"strict\"\n[system_calls]\nallow = [\"ptrace\"]\nrefuse = [\"memfd_create\", \"socket\"]\n";
    const TRY: &str = "python3 -c '\nimport ctypes, os, socket\n\
        def attempt(f):\n  try: return f() and \"yes\"\n  except PermissionError: return \"no\"\n\
        libc = ctypes.CDLL(None)\n\
        print(\"yes\" if libc.ptrace(0, 0, 0, 0) == 0 else \"no\", attempt(lambda: os.memfd_create(\"x\")), attempt(lambda: socket.socket(socket.AF_UNIX)))'";
    in_both(async |mode| {
        let place = start(mode, &[("debug", CALLS)], &[]).await;
        if place.sh("strict", "command -v python3 >/dev/null").await.record.outcome
            != (Outcome::Exited { code: 0 })
        {
            return skipped_aloud_because(mode, "SKIP: python3 is not there to make system calls");
        }
        assert_eq!(place.sh("strict", TRY).await.ok(), "no yes yes\n");
        let debug = place.sh("debug", TRY).await;
        assert_eq!(debug.ok(), "yes no no\n");
        assert_eq!(debug.record.layers[&Layer::Seccomp], Hold::Enforced);
    });
}

#[test]
fn sockets_of_the_host_are_reached_where_an_operator_says_so() {
    const OPEN: &str = "base = \"host\"\n[network]\nunix_sockets = true\n";
    const SHOWN: &str = "base = \"strict\"\n[files]\nread = [\"OUT/shown\"]\n";
    in_both(async |mode| {
        let place =
            start(mode, &[("local", OPEN), ("closed", "base = \"host\""), ("shown", SHOWN)], &[]).await;
        let path = place.outside.path().join("shown/socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        open(&path, 0o777);
        for (name, code) in [("local", 10), ("closed", 20), ("host", 20), ("shown", 10), ("strict", 20)] {
            let mut plan = place.plan(name, "");
            plan.program = Program::Script { interpreter: None };
            plan.argv = vec!["unix_socket".into(), path.display().to_string()];
            let script = Some(Script::Bytes(fs::read(attacker::attacker()).unwrap()));
            let ended = place.host.run(&plan, RunInputs { script, ..RunInputs::default() }).await;
            assert_eq!(ended.record.outcome, Outcome::Exited { code }, "{name}: {}", ended.stdout);
        }
    });
}

#[test]
fn limits_rates_and_required_layers_are_the_definitions() {
    const SLOW: &str = "base = \"strict\"\n[files]\nwrite = [\"OUT/written\"]\n\
         [limits]\nopen_files = 77\ncpu_percent = 10\nwrite_bytes_per_s = 1000000\n";
    const STRICT: &str = "base = \"net\"\nrequire = [\"seccomp\", \"net\"]\n";
    in_both(async |mode| {
        let place = start(mode, &[("slow", SLOW), ("sure", STRICT)], &[]).await;
        let burn = "ulimit -n; timeout 1 sh -c 'while :; do :; done'; :";
        let slow = place.sh("slow", burn).await;
        assert_eq!(slow.ok(), "77\n");
        let layers = &slow.record.layers;
        assert_eq!(
            layers[&Layer::CgroupCpuQuota],
            layers[&Layer::CgroupCpu],
            "the controller gives both or none"
        );
        assert!(layers.contains_key(&Layer::CgroupIo), "it was asked for, so it is reported");
        if in_units() {
            for layer in [Layer::CgroupCpuQuota, Layer::CgroupIo] {
                assert_eq!(layers[&layer], Hold::Enforced, "{layer:?}: everything is handed down to a unit");
            }
        }
        if layers[&Layer::CgroupIo] == Hold::Enforced {
            // Past the page cache, so that it is the script that waits for the disk.
            let write = "dd if=/dev/zero of=OUT/written/file bs=1M count=4 oflag=direct 2>&1";
            let begun = Instant::now();
            place.sh("slow", write).await.ok();
            let took = begun.elapsed();
            assert!(took > Duration::from_secs(2), "4 MiB at 1 MB each second in {took:?}");
        }
        if layers[&Layer::CgroupCpuQuota] == Hold::Enforced {
            assert!(slow.record.usage.cpu_ms < 400, "{:?} of 1000 ms at 10 %", slow.record.usage);
        } else {
            skipped_aloud_because(mode, "SKIP: no control groups, so no share of the processors");
        }
        let free = place.sh("strict", burn).await;
        assert_eq!(free.ok(), format!("{}\n", plan("").limits.open_files));
        assert!(!free.record.layers.contains_key(&Layer::CgroupCpuQuota));
        if layers[&Layer::CgroupCpuQuota] == Hold::Enforced {
            let group =
                group_file(&place, "cpu.cfs_quota_us").or_else(|| group_file(&place, "cpu.max")).unwrap();
            assert!(group == "-1" || group.starts_with("max"), "the slot's group is free again: {group}");
        }
        let sure = place.sh("sure", "true").await.record.outcome;
        let Outcome::SetupFailed { step, message, .. } = sure else { panic!("{sure:?}") };
        assert!(step == "require" && message.contains("requires net,"), "{message}");
        // Demanded by the plan itself, by the name that a result has.
        let mut plan = place.plan("slow", "true");
        plan.require = vec![Layer::Account];
        let outcome = place.host.run(&plan, RunInputs::default()).await.record.outcome;
        assert!(
            matches!(&outcome, Outcome::SetupFailed { message, .. } if message.contains("account")),
            "{outcome:?}"
        );
    });
}

/// A file of the group of slot 0, by the group in which its next init waits.
fn group_file(place: &Place, name: &str) -> Option<String> {
    let launcher = place.host.child.id() as i32;
    let all = tree(launcher);
    all.into_iter().find_map(|pid| {
        let group = group_of(pid, "cpu").filter(|group| group.ends_with("slot-0"))?;
        let roots = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"];
        let read = |root: &&str| fs::read_to_string(format!("{root}{group}/{name}")).ok();
        roots.iter().find_map(read).map(|text| text.trim().to_owned())
    })
}

#[test]
fn the_launcher_alone_decides_what_a_name_means() {
    const TEXTS: [(&str, &str); 4] = [
        ("tight", "base = \"strict\"\n"),
        ("online", "base = \"net\"\n"),
        ("root", "base = \"admin\"\n"),
        ("broken", "base = \"strict\"\ncolour = 1\n[files]\nread = [\"/no/such/path\"]\n"),
    ];
    in_both(async |mode| {
        let place = start(mode, &TEXTS, &["--max-profile", "strict"]).await;
        let begin = async |plan: &Plan| place.host.begin(0, plan, RunInputs::default()).await;
        // An agent that lies about the base gets what the file says, which is nothing of what it asked for.
        let lie = Plan { profile: Profile::Host, ..place.plan("tight", "true") };
        refused(begin(&lie).await, "starts from strict here, not from host");
        let unknown = Plan { defined: Some(ProfileName::new("none").unwrap()), ..plan("true") };
        refused(begin(&unknown).await, "there is no profile none");
        let broken = Plan { defined: Some(ProfileName::new("broken").unwrap()), ..plan("true") };
        refused(begin(&broken).await, "colour = 1: expected no such key");
        refused(begin(&place.plan("net", "true")).await, "wider than strict");
        refused(begin(&place.plan("root", "true")).await, "root is wider than strict");
        refused(begin(&place.plan("admin", "true")).await, "admin is wider than strict");
        let nobody = Plan { user: Some("nobody".into()), ..plan("true") };
        refused(begin(&nobody).await, "this launcher allows no accounts");
        // Allowed by its file, although `net` is not.
        assert_eq!(place.sh("online", "echo here").await.ok(), "here\n");
        let info = place.host.launcher.info();
        let problem = |name: &str| info.allowed(&ProfileName::new(name).unwrap()).err();
        assert_eq!((problem("tight"), problem("online")), (None, None));
        assert!(problem("broken").unwrap().contains("colour = 1") && problem("net").is_some());
        assert!(problem("nothing").unwrap().contains("not defined on this host"));
        assert_eq!(place.host.sh("echo still here").await.ok(), "still here\n");
    });
}

/// Only root can be root; says so where the test is not.
fn as_root(test: impl AsyncFn()) {
    if nix::unistd::geteuid().is_root() {
        block_on(test());
    } else {
        skipped_aloud_because(Mode::User, "SKIP: not root: neither admin nor another account is possible");
    }
}

#[test]
fn an_ordinary_launcher_gives_neither_admin_nor_an_account() {
    block_on(async {
        let place = start(Mode::User, &[], &["--max-profile", "admin", "--allow-user", "daemon"]).await;
        refused(
            place.host.begin(0, &place.plan("admin", "true"), RunInputs::default()).await,
            "must be started as root",
        );
        let daemon = Plan { user: Some("daemon".into()), ..plan("true") };
        refused(place.host.begin(0, &daemon, RunInputs::default()).await, "the launcher is not root");
        assert!(place.host.launcher.info().allowed(&ProfileName::new("admin").unwrap()).is_err());
    });
}

#[test]
fn admin_is_root_on_the_host_and_says_so() {
    as_root(async || {
        let place = start(Mode::Root, &[], &["--max-profile", "admin"]).await;
        let pid = std::process::id();
        let text = format!(
            "id -u; test -d /proc/{pid} && echo seen; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status | tr '\\n\\t' '  '; echo; \
             echo made >OUT/by-admin; cat OUT/by-admin; env | cut -d= -f1 | grep -v -E '^(_|PWD|OLDPWD|SHLVL)$'; \
             echo '{{\"a\":1}}' >&3; mount -t tmpfs none OUT/written && touch OUT/written/x; yes | head -c 100000"
        );
        let mut plan = place.plan("admin", &text);
        plan.limits.stdout_bytes = 2000;
        let ended = place.host.run(&plan, RunInputs::default()).await;
        let head: Vec<&str> = ended.ok().lines().take(5).collect();
        assert_eq!((head[0], head[1], head[3], head[4]), ("0", "seen", "made", "PATH"), "{head:?}");
        let of_this = fs::read_to_string("/proc/self/status").unwrap();
        let caps = of_this.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
        assert!(head[2].contains(caps) && head[2].contains("NoNewPrivs: 0"), "{}", head[2]);
        let made = fs::metadata(place.outside.path().join("by-admin")).unwrap();
        assert_eq!((made.uid(), made.mode() & 0o777), (0, 0o644));
        assert!(!place.outside.path().join("written/x").exists(), "its mounts are its own");
        let record = &ended.record;
        assert_eq!((record.uid, record.profile), (0, Profile::Admin));
        assert_eq!(
            (record.stdout.kept, &ended.result[..]),
            (2000, &b"{\"a\":1}\n"[..]),
            "bounds and pipe are as ever"
        );
        assert!(record.stdout.dropped > 90_000);
        for (layer, hold) in &record.layers {
            use Layer::*;
            let expected = match layer {
                Mount | Rlimits | ClosedDescriptors | Environment => Hold::Enforced,
                Cgroup | CgroupMemory | CgroupPids | CgroupCpu => continue,
                _ => Hold::Absent,
            };
            assert_eq!(*hold, expected, "{layer}");
        }
        assert_eq!(record.layers.len(), Layer::ALL.len());
        // The slot confines again, and the same for groups as in strict.
        let strict = place.sh("strict", "id -u").await;
        assert_eq!(strict.ok(), format!("{}\n", place.host.uid(0)));
        assert_eq!(strict.record.layers[&Layer::CgroupMemory], record.layers[&Layer::CgroupMemory]);
        assert_eq!(strict.record.layers[&Layer::Seccomp], Hold::Enforced);
    });
}

/// A shell that starts processes which leave it in every usual way, and waits. Each has `mark` in its command line.
fn escapes(mark: &str) -> String {
    format!(
        "sh -c 'trap : TERM; sleep 300; : {mark}' & setsid sh -c 'sleep 300; : {mark}' & \
         (setsid sh -c '(sleep 300; : {mark}) & sleep 300; : {mark}' &) & \
         setpriv --reuid 65534 --clear-groups sh -c 'sleep 300; : {mark}' & sleep 0.2; echo up; "
    )
}

fn marked(mark: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            // Not the shell that names them all.
            line.contains(&format!(": {mark}")) && !line.contains("echo up")
        })
        .count()
}

#[test]
fn the_whole_tree_of_admin_ends_with_the_run() {
    as_root(async || {
        let place = start(Mode::Root, &[], &["--max-profile", "admin"]).await;
        let mark = format!("end-{}", std::process::id());
        let ended = place.sh("admin", &escapes(&mark)).await;
        assert_eq!(ended.ok(), "up\n");
        assert!(ended.record.leftovers >= 4, "{}", ended.record.leftovers);
        assert_eq!(marked(&mark), 0);
        let mut plan = place.plan("admin", &format!("trap '' TERM; {}sleep 300; :", escapes(&mark)));
        (plan.timeout_ms, plan.grace_ms) = (1000, 200);
        let ended = place.host.run(&plan, RunInputs::default()).await;
        assert!(matches!(ended.record.outcome, Outcome::TimedOut { .. }), "{:?}", ended.record.outcome);
        assert_eq!(marked(&mark), 0);
    });
}

#[test]
fn the_tree_of_admin_ends_with_its_keeper() {
    as_root(async || {
        let place = start(Mode::Root, &[], &["--max-profile", "admin"]).await;
        let mark = format!("keeper-{}", std::process::id());
        let plan = place.plan("admin", &format!("{}sleep 300; :", escapes(&mark)));
        let mut running = place.host.begin(0, &plan, RunInputs::default()).await.unwrap();
        running.release();
        running.said("up").await;
        assert!(marked(&mark) >= 4);
        kill(Pid::from_raw(running.keeper), Signal::SIGKILL).unwrap();
        while running.event().await != Event::KeeperGone {}
        eventually("all of its tree is dead", || marked(&mark) == 0).await;
        assert_eq!(place.host.sh("echo again").await.ok(), "again\n");
    });
}

#[test]
fn a_fork_bomb_of_admin_ends() {
    as_root(async || {
        let place = start(Mode::Root, &[], &["--max-profile", "admin"]).await;
        let mark = format!("bomb-{}", std::process::id());
        let mut plan =
            place.plan("admin", &format!("f() {{ f {mark} & f {mark} & }}; f; sleep 300; : {mark}"));
        // Without control groups nothing bounds root's processes: the bomb is small then.
        if place.sh("admin", "true").await.record.layers[&Layer::CgroupPids] != Hold::Enforced {
            return skipped_aloud_because(
                Mode::Root,
                "SKIP: no control groups: nothing bounds a fork bomb of root",
            );
        }
        plan.limits.processes = 64;
        (plan.timeout_ms, plan.grace_ms) = (500, 0);
        let started = Instant::now();
        let ended = place.host.run(&plan, RunInputs::default()).await;
        assert!(started.elapsed() < Duration::from_secs(15));
        assert!(matches!(ended.record.outcome, Outcome::TimedOut { .. }), "{:?}", ended.record.outcome);
        eventually("nothing of it is left", || {
            !fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(&mark)
            })
        })
        .await;
    });
}

#[test]
fn a_run_is_the_account_that_its_policy_allows() {
    as_root(async || {
        let place = start(Mode::Root, &[], &["--allow-user", "daemon", "--allow-user", "root"]).await;
        let account = nix::unistd::User::from_name("daemon").unwrap().unwrap();
        let (uid, gid) = (account.uid.as_raw(), account.gid.as_raw());
        let own = place.outside.path().join("of-daemon");
        fs::write(&own, "daemon's\n").unwrap();
        open(&own, 0o400);
        chown(&own, Some(uid), Some(gid)).unwrap();
        for profile in [Profile::Strict, Profile::Net, Profile::Host] {
            let mut plan =
                self::profile(profile, "id -u; id -g; id -un; cat /run/sally/box/secrets/* 2>/dev/null; :");
            plan.user = Some("daemon".into());
            plan.require = vec![Layer::Account, Layer::Capabilities, Layer::NoNewPrivs, Layer::Seccomp];
            let ended = place.host.run(&plan, RunInputs::default()).await;
            assert_eq!(ended.ok(), format!("{uid}\n{gid}\ndaemon\n"), "{profile}");
            assert_eq!(ended.record.uid, uid);
            assert_eq!(ended.record.layers[&Layer::Uid], Hold::Absent, "others have this uid");
            assert_eq!(ended.record.layers[&Layer::User], Hold::Enforced);
        }
        let read = format!("cat {}", own.display());
        let mut plan = profile(Profile::Host, &read);
        let other = place.host.run(&plan, RunInputs::default()).await;
        assert_eq!(other.record.outcome, Outcome::Exited { code: 1 }, "{}", other.stderr);
        assert!(!other.record.layers.contains_key(&Layer::Account));
        plan.user = Some("daemon".into());
        assert_eq!(place.host.run(&plan, RunInputs::default()).await.ok(), "daemon's\n");
        for (user, words) in
            [("root", "profile admin is for"), ("nobody", "this launcher allows daemon, root")]
        {
            plan.user = Some(user.into());
            refused(place.host.begin(0, &plan, RunInputs::default()).await, words);
        }
        assert_eq!(place.host.launcher.info().users, ["daemon"]);
    });
}

#[test]
fn an_account_brings_its_groups() {
    as_root(async || {
        // Whatever account of this host is in a group besides its own.
        let groups = fs::read_to_string("/etc/group").unwrap();
        let found = groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (gid, members) = (fields.nth(2)?, fields.next()?);
            let member = members.split(',').find(|name| !name.is_empty() && *name != "root")?;
            let user = nix::unistd::User::from_name(member).ok()??;
            (user.uid.as_raw() != 0).then(|| (member.to_owned(), gid.to_owned()))
        });
        let Some((name, gid)) = found else {
            return skipped_aloud_because(Mode::Root, "SKIP: no account of this host is in a second group");
        };
        let place = start(Mode::Root, &[], &["--allow-user", &name]).await;
        for profile in [Profile::Strict, Profile::Host] {
            let mut plan = self::profile(profile, "id -G");
            plan.user = Some(name.clone());
            let ended = place.host.run(&plan, RunInputs::default()).await;
            assert!(ended.ok().split_whitespace().any(|g| g == gid), "{gid} in {}", ended.stdout);
        }
    });
}

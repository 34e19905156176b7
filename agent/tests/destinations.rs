//! Lists of destinations: what they let through, and every attack on them, in a network of their own that has a database,
//! another host, a metadata address and names. As root and as an ordinary user.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "attacks/destinations.rs"]
mod registry;

mod host;

use host::attacker::attacker;
use host::{Ended, Host, block_on, children, eventually, plan, tree};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use registry::{DESTINATIONS, Try};
use sally_agent::sandbox::{
    CONNECTIONS_MAX, Hold, Layer, Mode, NetworkUse, Outcome, Plan, Profile, Program, RunInputs, Script,
};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

const OPEN: i32 = 10;
const CLOSED: i32 = 20;
const CANNOT: i32 = 30;

/// Makes the network in which the launcher then lives, with a link that leads nowhere: without one it has no network.
const SETUP: &str = r#"
set -e
ip link set lo up
ip link add out type veth peer name nowhere
ip link set out up
for address in 10.99.0.1/32 10.99.0.2/32 169.254.169.254/32; do ip address add $address dev lo; done
for address in fd99::1/128 fd99::2/128; do ip -6 address add $address dev lo nodad; done
mount --bind "$1/hosts" /etc/hosts
if [ -e /etc/resolv.conf ]; then mount --bind "$1/resolv.conf" /etc/resolv.conf; fi
mkfifo "$1/up"
"$2" world 5432 5433 sally-world "$1/socket" < /dev/null > "$1/up" 2> /dev/null &
read word < "$1/up"
test "$word" = up
shift 2
exec "$@"
"#;

const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n10.99.0.1 db.example\n10.99.0.2 web.example\n\
     127.0.0.1 rebound.example\n169.254.169.254 metadata.example\n";

/// A launcher in that network.
async fn world(mode: Mode, broken: &[Layer]) -> Host {
    let args: Vec<&str> = broken.iter().flat_map(|layer| ["--break", layer.name()]).collect();
    world_with(mode, &args).await
}

async fn world_with(mode: Mode, args: &[&str]) -> Host {
    let by = |dir: &Path| {
        fs::write(dir.join("hosts"), HOSTS).unwrap();
        fs::write(dir.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n").unwrap();
        let words = ["unshare", "--mount", "--net", "sh", "-c", SETUP, "sh"].map(String::from);
        let more = [dir, &attacker()].map(|path| path.to_string_lossy().into_owned());
        words.into_iter().chain(more).collect()
    };
    Host::start_by(mode, args, by).await
}

/// Runs a test in each mode. Only root can make the network.
#[expect(clippy::print_stderr, reason = "a test that is not run must be seen")]
fn in_both<F: Future<Output = ()>>(test: impl Fn(Mode) -> F) {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIP: only root can make the network that the launcher of this test lives in");
    }
    for mode in [Mode::User, Mode::Root] {
        block_on(test(mode));
    }
}

fn listed(profile: Profile, allow: &[&str], run: &[&str]) -> Plan {
    let mut plan = plan("");
    plan.profile = profile;
    plan.program = Program::Script { interpreter: None };
    plan.argv = run.iter().map(|word| (*word).to_owned()).collect();
    plan.destinations = Some(allow.iter().map(|text| text.parse().unwrap()).collect());
    plan
}

fn program() -> RunInputs {
    RunInputs { script: Some(Script::Bytes(fs::read(attacker()).unwrap())), ..RunInputs::default() }
}

async fn attack(host: &Host, plan: &Plan) -> (i32, Ended) {
    let ended = host.run(plan, program()).await;
    match ended.record.outcome {
        Outcome::Exited { code } => (code, ended),
        ref other => panic!("{other:?} {}", ended.stderr),
    }
}

/// How an allowed connection ends, and what the record says of it.
async fn ask(host: &Host, profile: Profile, allow: &[&str], to: [&str; 2]) -> (i32, NetworkUse, Ended) {
    let (code, ended) = attack(host, &listed(profile, allow, &["answer", to[0], to[1]])).await;
    let used = ended.record.network.clone().unwrap();
    (code, used, ended)
}

#[expect(clippy::print_stderr, reason = "what is not tried must be seen")]
fn attempt(test: &str) {
    let tried = DESTINATIONS.iter().find(|tried| tried.test == test).unwrap();
    in_both(async |mode| {
        let try_without = async |broken: &[Layer], wanted: i32| {
            let host = world(mode, broken).await;
            for profile in [Profile::Strict, Profile::Host] {
                let dir = host.dir.path().to_string_lossy();
                let run: Vec<String> = tried.run.iter().map(|word| word.replace("{dir}", &dir)).collect();
                let run: Vec<&str> = run.iter().map(String::as_str).collect();
                let (code, ended) = attack(&host, &listed(profile, tried.allow, &run)).await;
                let Try { what, .. } = tried;
                if code == CANNOT {
                    eprintln!("SKIP: {what}: {}", ended.stdout.trim());
                    continue;
                }
                assert_eq!(
                    code, wanted,
                    "{what}: in {profile} as {mode:?} without {broken:?}: {} {:?}",
                    ended.stdout, ended.record.network
                );
            }
        };
        try_without(&[], CLOSED).await;
        if !tried.opens.is_empty() {
            try_without(tried.opens, OPEN).await;
        }
        for broken in tried.holds {
            try_without(broken, CLOSED).await;
        }
    });
}

/// The tests, one for each row of the registry.
macro_rules! attacks {
    ($($name:ident)*) => {
        $(#[test] fn $name() { attempt(stringify!($name)); })*

        const TESTS: &[&str] = &[$(stringify!($name)),*];
    };
}

attacks! {
    another_port_of_the_same_host
    the_same_port_of_another_host
    the_same_port_of_the_hosts_loopback
    loopback_by_a_list_of_everything
    metadata_by_a_list_of_everything
    metadata_by_a_listed_network
    another_host_by_a_mapped_address
    loopback_by_a_mapped_address
    another_host_by_ipv6
    the_address_of_a_name_by_another_number
    a_name_that_became_loopback
    a_name_that_became_metadata
    udp_to_a_listed_address
    another_host_by_mptcp
    another_port_by_fast_open
    listening_beside_a_list
    an_abstract_socket_beside_a_list
    a_unix_socket_beside_a_list
    everything_with_an_empty_list
}

#[test]
fn every_attack_on_destinations_has_a_test() {
    let rows: Vec<_> = DESTINATIONS.iter().map(|tried| tried.test).collect();
    assert_eq!(rows, TESTS);
    for tried in DESTINATIONS {
        assert_ne!(tried.opens.is_empty(), tried.unseen.is_empty(), "{}", tried.test);
    }
}

#[test]
fn what_is_listed_answers_and_the_record_says_so() {
    in_both(async |mode| {
        let host = world(mode, &[]).await;
        for profile in Profile::ALL {
            for (allow, to) in [
                ("10.99.0.1:5432", ["10.99.0.1", "5432"]),
                ("10.99.0.1:5432", ["::ffff:10.99.0.1", "5432"]),
                ("10.99.0.0/24:5000-5200", ["10.99.0.2", "5000"]),
                ("10.99.0.0/24:5432-5433", ["10.99.0.2", "5433"]),
                ("[fd99::/64]:5432", ["fd99::2", "5432"]),
                ("[fd99::1]:5432", ["fd99::1", "5432"]),
                ("*:5432", ["10.99.0.2", "5432"]),
                ("localhost:5432", ["::1", "5432"]),
                ("127.0.0.1:5432", ["127.0.0.1", "5432"]),
                ("169.254.169.254:5432", ["169.254.169.254", "5432"]),
                ("db.example:5432", ["127.83.0.1", "5432"]),
            ] {
                let (code, used, ended) = ask(&host, profile, &[allow], to).await;
                let layers = &ended.record.layers;
                assert_eq!(
                    layers.get(&Layer::Net),
                    Some(&Hold::Enforced),
                    "{allow} in {profile} as {mode:?}"
                );
                let all: Vec<_> = used.allowed.iter().map(ToString::to_string).collect();
                assert_eq!(all, [allow]);
                let nobody = to[1] == "5000";
                assert_eq!(
                    code,
                    if nobody { CLOSED } else { OPEN },
                    "{allow} in {profile}: {}",
                    ended.stdout
                );
                assert_eq!((used.connections, used.refused, used.failed), (1, 0, u64::from(nobody)));
                assert_eq!(used.trouble.is_some(), nobody, "{used:?}");
            }
        }
    });
}

#[test]
fn a_name_is_resolved_anew_for_each_connection_by_nobody_but_the_host() {
    in_both(async |mode| {
        let host = world(mode, &[]).await;
        let hosts = host.dir.path().join("hosts");
        // One after the other, the name in another place each time.
        for (address, wanted, failed) in
            [("10.99.0.1", OPEN, 0), ("127.0.0.1", CLOSED, 1), ("10.99.0.2", OPEN, 0), ("::1", CLOSED, 1)]
        {
            fs::write(&hosts, format!("{address} db.example\n")).unwrap();
            let (code, used, ended) =
                ask(&host, Profile::Strict, &["db.example:5432"], ["127.83.0.1", "5432"]).await;
            assert_eq!((code, used.failed), (wanted, failed), "{address}: {} {used:?}", ended.stdout);
            if failed > 0 {
                let why = used.trouble.unwrap();
                assert!(why.contains("db.example:5432") && why.contains("no name may lead"), "{why}");
            }
        }
        let mut plan = host::profile(Profile::Strict, "cat /etc/hosts; getent hosts db.example");
        plan.destinations = Some(vec!["db.example:5432".parse().unwrap()]);
        let ended = host.run(&plan, RunInputs::default()).await;
        assert!(
            ended.ok().lines().filter(|line| line.starts_with("127.83.0.1")).count() == 2,
            "{}",
            ended.stdout
        );
        assert!(ended.stdout.contains("127.0.0.1 localhost"));
    });
}

/// The process that looks names up has a filter and rules of its own: what a server of names takes must be in them.
#[test]
#[expect(clippy::print_stderr, reason = "what is not tried must be seen")]
fn a_name_that_only_a_server_knows_leads_out() {
    if !Path::new("/etc/resolv.conf").exists() {
        return eprintln!("SKIP: this host has no /etc/resolv.conf to put a server of names in");
    }
    in_both(async |mode| {
        let host = world(mode, &[]).await;
        for (name, wanted) in [("dns.example", OPEN), ("nowhere.example", CLOSED)] {
            let allow = format!("{name}:5432");
            let (code, used, ended) = ask(&host, Profile::Net, &[&allow], ["127.83.0.1", "5432"]).await;
            assert_eq!(code, wanted, "{name}: {} {used:?}", ended.stdout);
        }
    });
}

#[test]
fn the_process_that_connects_has_as_little_as_it_needs() {
    in_both(async |mode| {
        let host = world(mode, &[]).await;
        let plan = listed(Profile::Strict, &["10.99.0.1:5432"], &["many", "10.99.0.1", "5432", "1"]);
        let mut running = host.begin(0, &plan, program()).await.unwrap();
        running.release();
        let mut seen = BTreeMap::new();
        eventually("a connection is carried", || {
            for pid in tree(host.launcher.info().pid) {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                if ["sally-connector\n", "sally-relay\n"].contains(&&*name) {
                    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                    seen.insert(name, (pid, status));
                }
            }
            seen.len() == 2
        })
        .await;
        for (name, (pid, status)) in seen {
            let has = |key: &str, value: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
                assert_eq!(line, Some(value), "{key} of {name} as {mode:?}");
            };
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                has(set, "0000000000000000");
            }
            has("NoNewPrivs:", "1");
            has("Seccomp:", "2");
            let uid = if mode == Mode::Root { host.uid_base + 2 } else { host.uid(0) };
            has("Uid:", &[uid.to_string(), uid.to_string(), uid.to_string(), uid.to_string()].join("\t"));
            let memory = fs::metadata(format!("/proc/{pid}/mem"));
            assert!(memory.is_ok_and(|file| file.uid() == 0), "{name}: its memory is closed");
        }
        running.end().await;
    });
}

#[test]
fn one_attempt_leaves_nothing_to_the_next_and_lists_can_change() {
    in_both(async |mode| {
        let host = world(mode, &[]).await;
        let first = ask(&host, Profile::Strict, &["10.99.0.1:5432"], ["10.99.0.1", "5432"]).await;
        let second = ask(&host, Profile::Strict, &["10.99.0.2:5433"], ["10.99.0.1", "5432"]).await;
        let third = ask(&host, Profile::Strict, &["10.99.0.2:5433"], ["10.99.0.2", "5433"]).await;
        assert_eq!((first.0, second.0, third.0), (OPEN, CLOSED, OPEN));
        assert_eq!(second.1.connections, 0);
        // And a plan without a list has what its profile has.
        let mut plain = listed(Profile::Strict, &[], &["answer", "10.99.0.2", "5433"]);
        plain.destinations = None;
        let (code, ended) = attack(&host, &plain).await;
        assert_eq!((code, ended.record.network), (CLOSED, None));
    });
}

#[test]
fn connections_are_bounded_and_end_with_the_attempt() {
    in_both(async |mode| {
        let host = world(mode, &[]).await;
        let run = ["many", "10.99.0.1", "5432", "80"];
        let (code, ended) = attack(&host, &listed(Profile::Strict, &["10.99.0.1:5432"], &run)).await;
        assert_eq!((code, ended.stdout.trim()), (0, &*format!("{CONNECTIONS_MAX} answers")));
        let keepers = children(host.launcher.info().pid);
        let named = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let all = keepers.iter().flat_map(|keeper| children(*keeper));
        let connectors: Vec<i32> = all.filter(|pid| named(*pid).trim() == "sally-connector").collect();
        assert_eq!(connectors.len(), 1);
        assert_eq!(children(connectors[0]), Vec::<i32>::new(), "relays outlived their attempt");
    });
}

#[test]
fn a_connector_that_dies_is_told_of_and_replaced() {
    in_both(async |mode| {
        let host = world(mode, &[]).await;
        let plan = listed(Profile::Strict, &["10.99.0.1:5432"], &["wait"]);
        let mut running = host.begin(0, &plan, program()).await.unwrap();
        running.release();
        running.said("waiting").await;
        let find = |keeper: i32| {
            let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            children(keeper).into_iter().find(|pid| name(*pid).trim() == "sally-connector")
        };
        let connector = find(running.keeper).unwrap();
        let status = fs::read_to_string(format!("/proc/{connector}/status")).unwrap();
        let line = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(line("CapEff:"), "0000000000000000");
        assert_eq!((line("NoNewPrivs:"), line("Seccomp:")), ("1".into(), "2".into()));
        let uid: u32 = line("Uid:").split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(uid, if mode == Mode::Root { host.uid_base + 2 } else { host.uid(0) });
        kill(Pid::from_raw(connector), Signal::SIGKILL).unwrap();
        running.folder.kill().unwrap();
        let ended = running.end().await;
        assert!(ended.record.network.unwrap().trouble.unwrap().contains("died"));
        let (code, _, ended) = ask(&host, Profile::Strict, &["10.99.0.1:5432"], ["10.99.0.1", "5432"]).await;
        assert_eq!(code, OPEN, "{}", ended.stdout);
        // A keeper that dies takes its connector with it.
        let mut running = host.begin(0, &plan, program()).await.unwrap();
        running.release();
        running.said("waiting").await;
        let connector = find(running.keeper).unwrap();
        kill(Pid::from_raw(running.keeper), Signal::SIGKILL).unwrap();
        eventually("the connector is dead", || !host::alive(connector)).await;
    });
}

#[test]
fn a_neighbour_slot_cannot_be_reached() {
    in_both(async |mode| {
        for (broken, wanted) in [(&[][..], CLOSED), (&[Layer::Net, Layer::Landlock], OPEN)] {
            let host = world(mode, broken).await;
            let serve = listed(Profile::Strict, &["10.99.0.1:5432"], &["abstract_server", "neighbour"]);
            let mut neighbour = host.begin(1, &serve, program()).await.unwrap();
            neighbour.release();
            neighbour.said("serving").await;
            let run = ["abstract_socket", "neighbour"];
            let (code, ended) = attack(&host, &listed(Profile::Strict, &["10.99.0.1:5432"], &run)).await;
            assert_eq!(code, wanted, "{mode:?} without {broken:?}: {}", ended.stdout);
            neighbour.folder.kill().unwrap();
            neighbour.end().await;
        }
    });
}

#[test]
fn an_operators_profile_has_a_list_of_its_own() {
    in_both(async |mode| {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let text = "base = \"host\"\n[network]\nallow = [\"db.example:5432\"]\n";
        fs::write(dir.path().join("database.toml"), text).unwrap();
        fs::write(dir.path().join("alone.toml"), "base = \"host\"\n[network]\nallow = []\n").unwrap();
        let host = world_with(mode, &["--profiles-dir", dir.path().to_str().unwrap()]).await;
        for (name, to, wanted) in [
            ("database", ["127.83.0.1", "5432"], OPEN),
            ("database", ["10.99.0.1", "5432"], CLOSED),
            ("alone", ["10.99.0.1", "5432"], CLOSED),
        ] {
            let mut plan = listed(Profile::Host, &[], &["answer", to[0], to[1]]);
            plan.destinations = None;
            plan.defined = Some(sally_common::name::ProfileName::new(name).unwrap());
            let (code, ended) = attack(&host, &plan).await;
            assert_eq!(code, wanted, "{name} {to:?}: {}", ended.stdout);
            let allowed = ended.record.network.unwrap().allowed.len();
            assert_eq!(allowed, usize::from(name == "database"));
            assert_eq!(ended.record.layers.get(&Layer::Net), Some(&Hold::Enforced));
        }
    });
}

#[test]
fn a_launcher_without_a_network_refuses_by_name() {
    in_both(async |mode| {
        let by = |_: &Path| ["unshare", "--net", "--"].map(String::from).to_vec();
        let host = Host::start_by(mode, &[], by).await;
        let ended = host.run(&listed(Profile::Strict, &["db.example:5432"], &["wait"]), program()).await;
        let Outcome::SetupFailed { step, message, .. } = &ended.record.outcome else {
            panic!("{:?}", ended.record.outcome)
        };
        assert_eq!(step, "network");
        assert!(message.contains("db.example:5432") && message.contains("PrivateNetwork"), "{message}");
    });
}

#[test]
fn a_strict_launcher_allows_what_it_was_told() {
    in_both(async |mode| {
        let args = ["--max-profile", "strict", "--allow", "10.99.0.0/24:1-256"];
        let host = Host::start(mode, &args).await;
        let plan = listed(Profile::Strict, &["10.98.0.1:80"], &["wait"]);
        let Err(error) = host.begin(0, &plan, program()).await else { panic!("it was accepted") };
        let text = error.to_string();
        assert!(text.contains("10.98.0.1:80") && text.contains("--allow"), "{text}");
        let plan = listed(Profile::Strict, &["10.99.0.7:80"], &["read", "/etc/hosts"]);
        assert_eq!(attack(&host, &plan).await.0, OPEN);
    });
}

#[test]
fn a_plan_that_requires_the_layer_is_refused_without_it() {
    in_both(async |mode| {
        let host = world(mode, &[Layer::Net]).await;
        let mut plan = listed(Profile::Host, &["10.99.0.1:5432"], &["wait"]);
        plan.require = vec![Layer::Net];
        let ended = host.run(&plan, program()).await;
        assert!(matches!(ended.record.outcome, Outcome::SetupFailed { ref step, .. } if step == "require"));
        assert_eq!(ended.record.layers.get(&Layer::Net), Some(&Hold::Absent));
    });
}

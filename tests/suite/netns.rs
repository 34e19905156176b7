//! An agent in a place where nobody can connect to: its own network namespace that drops whatever comes
//! in unasked, its own host name, its own root file system. Started by hand, as one would on another host.
//!
//! Needs root and `ip`, `tc`, `unshare`, `pivot_root`; without them it says aloud that it is skipped.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Up, eventually, programs, run};
use crate::outside::{self, Own, namespace};

/// Lets in ARP, and of TCP over IPv4 only what belongs to a connection (ACK is set, as in all but the first
/// segment). Everything else is dropped: connection attempts, UDP, ICMP, fragments, IPv6. Classic BPF.
const DROP_UNASKED: &str = "12,40 0 0 12,21 8 0 2054,21 0 8 2048,48 0 0 23,21 0 6 6,40 0 0 20,69 4 0 8191,\
                            177 0 0 14,80 0 0 27,69 0 1 16,6 0 0 0,6 0 0 2";

/// How long a connection attempt may take to be sure that nothing answers it.
const SILENCE: Duration = Duration::from_secs(2);

const HOSTNAME: &str = "edge-host-7";

/// What a network namespace of a test's own needs and is not here.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    let absent = |name: &&str| !folders.iter().any(|dir| dir.join(name).is_file());
    let tools: Vec<&str> =
        ["ip", "tc", "unshare", "pivot_root", "mount", "umount"].into_iter().filter(absent).collect();
    (!tools.is_empty()).then(|| format!("there is no {}", tools.join(", ")))
}

#[track_caller]
fn sh(text: &str) -> String {
    run(Command::new("sh").args(["-euc", text])).expect(0).text()
}

/// A network namespace joined to this one by a pair of interfaces. Dropped, both are gone.
pub struct Zone {
    pub name: String,
    /// The address of this side.
    pub outside: String,
    inside: String,
    link: String,
}

impl Zone {
    pub fn new() -> Zone {
        // Several tests may be threads of one process.
        static ZONES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let more = ZONES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Interface names have at most 15 bytes; the address block is for benchmarks and used by nobody.
        let id = std::process::id().wrapping_add(more * 7_919) % 10_000_000;
        let (a, b) = (id / 64 % 256, id % 64 * 4);
        let zone = Zone {
            name: format!("sally-test-{id}"),
            outside: format!("198.18.{a}.{}", b + 1),
            inside: format!("198.18.{a}.{}", b + 2),
            link: format!("sly{id}"),
        };
        let Zone { name, outside, inside, link } = &zone;
        sh(&format!(
            "ip netns add {name}; ip link add {link} type veth peer name up0 netns {name}; \
             ip addr add {outside}/30 dev {link}; ip link set {link} up; \
             ip -n {name} addr add {inside}/30 dev up0; ip -n {name} link set lo up; ip -n {name} link set up0 up"
        ));
        zone
    }

    fn drop_unasked(&self) {
        sh(&format!(
            "ip netns exec {0} tc qdisc add dev up0 clsact; \
             ip netns exec {0} tc filter add dev up0 ingress bpf bytecode '{DROP_UNASKED}' da",
            self.name
        ));
    }

    /// Drops everything that comes in, that goes out, or both.
    pub fn drop_all(&self, directions: &[&str]) {
        let name = &self.name;
        sh(&format!("ip netns exec {name} tc qdisc replace dev up0 clsact"));
        for direction in directions {
            sh(&format!(
                "ip netns exec {name} tc filter add dev up0 {direction} bpf bytecode '1,6 0 0 2' da"
            ));
        }
    }

    /// Takes every filter away.
    pub fn pass_all(&self) {
        sh(&format!("ip netns exec {} tc qdisc del dev up0 clsact", self.name));
    }

    fn let_all_in(&self) {
        sh(&format!("ip netns exec {} tc filter del dev up0 ingress", self.name));
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        // The interface pair goes with the namespace.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// The start of an agent on a host of its own. `$1` the new root, `$2` the agent's folder, `$3` the programs.
/// It becomes the agent, so the test's child is the agent itself.
const START: &str = r#"
mount -t tmpfs -o mode=0755 edge-root "$1"
cd "$1"
mkdir usr etc proc dev sys tmp run var old opt opt/agent opt/bin
mount --rbind /usr usr
mount -o remount,bind,ro usr
for dir in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$dir" ]; then cp -a "/$dir" .; elif [ -d "/$dir" ]; then mkdir "$dir"; mount --bind "/$dir" "$dir"; fi
done
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
chmod 1777 tmp
mount --bind "$2" opt/agent
mount --bind "$3" opt/bin
printf 'NAME="Edge OS"\nID=edgeos\nVERSION_ID="7.1"\nPRETTY_NAME="Edge OS 7.1"\n' > etc/os-release
echo 'root:x:0:0:root:/root:/bin/sh' > etc/passwd
echo "$4" > etc/hostname
[ ! -e /etc/ld.so.cache ] || cp /etc/ld.so.cache etc/
[ ! -d /etc/alternatives ] || cp -a /etc/alternatives etc/
hostname "$4" 2>/dev/null || echo "$4" > /proc/sys/kernel/hostname
pivot_root . old
cd /
umount -l /old
rmdir /old
exec /opt/bin/sally-agent run --config /opt/agent/agent.toml
"#;

fn start_agent(zone: &Zone, up: &Up) -> Own {
    let root = up.scratch().join("edge-root");
    fs::create_dir(&root).unwrap();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &zone.name, "unshare", "--uts", "--mount", "--propagation", "private"]);
    command.args(["sh", "-euc", START, "-"]).arg(root).arg(up.dir().join("agents/edge-1"));
    command.arg(programs()).arg(HOSTNAME);
    Own::start(&mut command, &up.scratch().join("edge-1.log"))
}

/// Facts as seen from outside, through the agent's own `/proc` entries and namespaces.
fn addresses(zone: &str) -> Vec<(String, String)> {
    let text = sh(&format!("ip -n {zone} -j addr"));
    let links: Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    for link in links.as_array().unwrap() {
        for address in link["addr_info"].as_array().unwrap() {
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            found.push((text(&link["ifname"]), text(&address["local"])));
        }
    }
    found.sort();
    found
}

fn reported_addresses(result: &Value) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let all = result["addresses"].as_array().unwrap().iter();
    let mut found: Vec<_> = all.map(|a| (text(&a["interface"]), text(&a["address"]))).collect();
    found.sort();
    found
}

/// Whether a connection from here to there is accepted.
fn accepts(address: &str, port: u16) -> bool {
    let address: SocketAddr = format!("{address}:{port}").parse().unwrap();
    TcpStream::connect_timeout(&address, SILENCE).is_ok()
}

#[test]
fn an_agent_behind_a_closed_door_answers_with_its_own_facts() {
    if let Some(reason) = missing() {
        println!("SKIPPED: an agent in a network namespace of its own: {reason}");
        return;
    }
    let zone = Zone::new();
    let up = Up::start_with(1, &["--prepare", "edge-1", "--listen", &zone.outside]);

    // The door, open and then closed: a listener in the zone is reached, and then is not.
    let port = 7007;
    let listen = format!(
        "import socket\ns = socket.create_server(('{}', {port}))\nwhile True: s.accept()[0].close()",
        zone.inside
    );
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &zone.name, "python3", "-c", &listen]);
    let listener = Own::start(&mut command, &up.scratch().join("listener.log"));
    eventually("the zone can be reached while its door is open", || {
        accepts(&zone.inside, port).then_some(())
    });
    zone.drop_unasked();
    assert!(!accepts(&zone.inside, port), "the zone's door is not closed");

    let agent = start_agent(&zone, &up);
    eventually("edge-1 is online", || {
        let said = up.sally(&["agent", "show", "edge-1", "-o", "json"]);
        if let Some(problem) = ended(&agent) {
            panic!("the agent has ended: {problem}\n{}", log(&up));
        }
        (said.code == 0 && said.json()["state"] == "online").then_some(())
    });
    for kind in ["net", "uts", "mnt"] {
        assert_ne!(namespace(agent.pid(), kind), namespace(up.pid(), kind), "the agent's {kind} namespace");
    }

    let args = ["run", "--all", "--profile", "host", "examples/host-inventory.sh"];
    let record = up.json(&args, 0);
    let runs = record["runs"].as_array().unwrap();
    let result = |agent: &str| &runs.iter().find(|r| r["agent"] == agent).unwrap()["result"];
    let (edge, local) = (result("edge-1"), result("local-1"));

    assert_eq!(edge["hostname"], HOSTNAME);
    assert_ne!(local["hostname"], HOSTNAME);
    assert_eq!((&edge["os"]["id"], &edge["os"]["pretty_name"]), (&"edgeos".into(), &"Edge OS 7.1".into()));
    assert_ne!(local["os"]["id"], "edgeos");
    assert_eq!(reported_addresses(edge), addresses(&zone.name));
    assert!(reported_addresses(edge).contains(&("up0".to_owned(), zone.inside.clone())));
    assert!(reported_addresses(local).contains(&(zone.link.clone(), zone.outside.clone())));
    assert_eq!(edge["kernel"]["release"], local["kernel"]["release"], "one kernel carries both");
    // Its root is its own: what it sees mounted is what its mount namespace has, and nothing is on `/`.
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", agent.pid())).unwrap();
    let has = |point: &str| mounts.lines().any(|l| l.split(' ').nth(1) == Some(point));
    for disk in edge["disks"].as_array().unwrap() {
        let point = disk["mount"].as_str().unwrap();
        assert!(point != "/" && has(point), "{point} is not a mount of the agent's:\n{mounts}");
    }
    let listing = up.json(&["exec", "-a", "edge-1", "--profile", "host", "--", "cat", "/etc/hostname"], 0);
    assert_eq!(listing["runs"][0]["stdout"], format!("{HOSTNAME}\n"));

    // Nobody in the zone but the test's own listener listens, and the door is closed still.
    let said = sh(&format!("ip netns exec {} ss -H -l -n -t -u", zone.name));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&format!(":{port} ")), "{said}");
    assert!(!accepts(&zone.inside, port), "the zone's door did not stay closed");
    zone.let_all_in();
    assert!(accepts(&zone.inside, port), "it was the door that kept the test out, not a dead listener");

    let launchers: Vec<i32> = outside::tree(agent.pid()).into_iter().collect();
    assert!(launchers.len() > 2, "the agent, its launcher and keepers: {launchers:?}");
    agent.stop();
    listener.stop();
    eventually("nothing of the agent is left", || {
        launchers.iter().all(|pid| outside::parent(*pid).is_none()).then_some(())
    });
}

fn ended(agent: &Own) -> Option<String> {
    let state = fs::read_to_string(Path::new("/proc").join(agent.pid().to_string()).join("stat"));
    match state {
        Ok(stat) if stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')) => None,
        Ok(_) => Some("it is a zombie".into()),
        Err(error) => Some(error.to_string()),
    }
}

fn log(up: &Up) -> String {
    fs::read_to_string(up.scratch().join("edge-1.log")).unwrap_or_default()
}
